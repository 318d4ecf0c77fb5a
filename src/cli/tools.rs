//! The commands beside the daemon, known by the first word: `flanneld check`, `flanneld cleanup`…
//!
//! One row each in [`TOOLS`]. Those that act on a host take the daemon's flags and variables as
//! well, so that the word is put in front of the command line that is there already.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command as ClapCommand};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::flags::Kind::Bool;
use super::flags::{self, Flag, flag};
use super::{Command, Options, Parsed, UsageError, Values, parse_flags};
use crate::admin::status::StatusOptions;

/// One command.
struct Tool {
    name: &'static str,
    about: &'static str,
    takes: Takes,
}

/// What stands behind a command's name.
#[derive(Clone, Copy)]
enum Takes {
    /// The daemon's flags, and these.
    DaemonFlags(&'static [Flag], fn(&Values) -> Result<Command, UsageError>),
    /// The name of a shell.
    Shell,
    /// Nothing.
    Nothing,
}

const TOOLS: &[Tool] = &[
    Tool {
        name: "check",
        about: "Examine this host before or after an installation; exit code 1 if something would \
                keep the daemon from working",
        takes: Takes::DaemonFlags(
            &[flag("json", Bool, "false", "print the findings as JSON")],
            |values| Ok(Command::Check { options: options(values)?, json: is_on(values, "json") }),
        ),
    },
    Tool {
        name: "cleanup",
        about: "Remove the device, routes, rules and files that a daemon left, and say what was \
                removed",
        takes: Takes::DaemonFlags(
            &[flag("dry-run", Bool, "false", "only say what would be removed")],
            |values| {
                let dry_run = is_on(values, "dry-run");
                Ok(Command::Cleanup { options: options(values)?, dry_run })
            },
        ),
    },
    Tool {
        name: "status",
        about: "Ask the running daemon how it stands; exit code 0 if it is ready, 3 if not",
        takes: Takes::DaemonFlags(
            &[
                flag("json", Bool, "false", "print JSON"),
                flag("watch", Bool, "false", "ask again every second"),
            ],
            |values| {
                let socket = Options::from_values(values)?.admin_socket;
                let socket = socket.ok_or_else(|| values.error("admin-socket", "a path"))?;
                let (json, watch) = (is_on(values, "json"), is_on(values, "watch"));
                Ok(Command::Status(StatusOptions { json, watch, socket }))
            },
        ),
    },
    Tool {
        name: "completions",
        about: "Print the completions for a shell: bash, zsh or fish",
        takes: Takes::Shell,
    },
    Tool { name: "man", about: "Print the manual page", takes: Takes::Nothing },
];

fn options(values: &Values) -> Result<Box<Options>, UsageError> {
    Options::from_values(values).map(Box::new)
}

fn is_on(values: &Values, name: &str) -> bool {
    values.flag(name) == Some(true)
}

/// Reads the words behind a command's name; `None` if `first` names no command.
pub(super) fn parse_tool(
    first: &OsStr,
    mut rest: impl Iterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Option<Result<Command, UsageError>> {
    let tool = TOOLS.iter().find(|tool| first == tool.name)?;
    Some(match tool.takes {
        Takes::DaemonFlags(own, build) => match parse_flags(rest, own, env) {
            Ok(Parsed::Values(values)) => build(&values),
            Ok(Parsed::Version) => Ok(Command::Version),
            Ok(Parsed::Help) => Ok(Command::Help(help(tool))),
            Err(error) => Err(error),
        },
        Takes::Shell => match rest.next() {
            Some(word) if is_help(&word) => Ok(Command::Help(help(tool))),
            word => completions(&word.unwrap_or_default()).map(Command::Print),
        },
        Takes::Nothing => match rest.next() {
            Some(word) if is_help(&word) => Ok(Command::Help(help(tool))),
            _ => Ok(Command::Print(manual())),
        },
    })
}

fn is_help(word: &OsStr) -> bool {
    ["-h", "--h", "-help", "--help"].iter().any(|help| word == *help)
}

fn help(tool: &Tool) -> String {
    tool.command().render_help().to_string()
}

impl Tool {
    /// What follows the name on the command line.
    fn usage(&self) -> &'static str {
        match self.takes {
            Takes::DaemonFlags(..) => "[FLAGS]",
            Takes::Shell => "SHELL",
            Takes::Nothing => "",
        }
    }

    fn command(&self) -> ClapCommand {
        let usage = format!("flanneld {} {}", self.name, self.usage());
        let command = ClapCommand::new(self.name)
            .about(self.about)
            .override_usage(usage.trim_end().to_owned())
            .disable_help_flag(true);
        match self.takes {
            Takes::DaemonFlags(own, _) => {
                let own = own
                    .iter()
                    .map(|flag| flags::argument(flag).help_heading("Flags of this command"));
                flags::with_flags(command.args(own))
            }
            Takes::Shell => {
                command.arg(Arg::new("SHELL").value_parser(SHELLS.map(|(name, _)| name)))
            }
            Takes::Nothing => command,
        }
    }
}

/// Clap's view of all: the daemon's flags and the commands.
pub(super) fn documented() -> ClapCommand {
    flags::command().disable_help_subcommand(true).subcommands(TOOLS.iter().map(Tool::command))
}

const SHELLS: [(&str, Shell); 3] =
    [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)];

fn completions(shell: &OsStr) -> Result<String, UsageError> {
    let Some((_, shell)) = SHELLS.into_iter().find(|(name, _)| shell == *name) else {
        return Err(UsageError::Value {
            flag: "completions".into(),
            value: crate::go_json::excerpt(&shell.to_string_lossy()),
            expected: "bash, zsh or fish".into(),
        });
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut documented(), "flanneld", &mut script);
    Ok(text(&script))
}

/// One page, in which the commands are a section: there are no pages of theirs to refer to.
fn manual() -> String {
    let source = format!("flanneld {}", env!("CARGO_PKG_VERSION"));
    let page = Man::new(flags::command()).section("8").source(source);
    let mut commands = Roff::new();
    commands.control("SH", ["COMMANDS"]);
    for tool in TOOLS {
        commands.control("TP", []);
        commands.text([bold(tool.name), roman(format!(" {}", tool.usage()))]);
        commands.text([roman(format!("{}.", tool.about))]);
        if let Takes::DaemonFlags(own, _) = tool.takes {
            let own: Vec<String> = own.iter().map(|flag| format!("--{}", flag.name)).collect();
            commands.text([roman(format!(
                "Takes the daemon's flags and variables, and {}.",
                own.join(", ")
            ))]);
        }
    }
    let mut out = Vec::new();
    // Writing to a vector cannot fail.
    let _ = page
        .render_title(&mut out)
        .and_then(|()| page.render_name_section(&mut out))
        .and_then(|()| page.render_synopsis_section(&mut out))
        .and_then(|()| page.render_description_section(&mut out))
        .and_then(|()| commands.to_writer(&mut out))
        .and_then(|()| page.render_options_section(&mut out))
        .and_then(|()| page.render_extra_section(&mut out));
    text(&out)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
