//! `flanneld status`: asks the running daemon, and shows what it says.
#![forbid(unsafe_code)]

mod client;
mod table;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use rustix::termios::tcgetwinsize;

use self::client::ask;
use self::table::Style;

/// Exit code if the daemon runs, but is not ready: `systemctl status` has it for what is not
/// active.
const EXIT_NOT_READY: u8 = 3;

/// Time between two questions of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusOptions {
    /// JSON, not a table.
    pub json: bool,
    /// Again every second.
    pub watch: bool,
    /// The daemon's socket.
    pub socket: PathBuf,
}

/// One answer, as it is shown.
struct Answer {
    text: String,
    exit: ExitCode,
}

/// Asks, prints, and says by its exit code how the daemon stands. With `--watch`, only a signal or
/// a closed output ends it.
pub fn run(options: &StatusOptions) -> ExitCode {
    if options.watch {
        return watch(options);
    }
    match answer(options, Style::of_stdout()) {
        Ok(answer) => match print(&answer.text) {
            Ok(()) => answer.exit,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            eprintln!("flanneld: {error}");
            ExitCode::FAILURE
        }
    }
}

fn answer(options: &StatusOptions, style: Style) -> Result<Answer, client::AskError> {
    let (json, report) = ask(&options.socket)?;
    let text =
        if options.json { json + "\n" } else { table::render(&report, SystemTime::now(), style) };
    let exit = if report.ready { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NOT_READY) };
    Ok(Answer { text, exit })
}

/// Shows one answer after the other. On a terminal each takes the place of the one before; nothing
/// there is switched that would have to be switched back, so an interrupt leaves it clean.
fn watch(options: &StatusOptions) -> ExitCode {
    let style = Style::of_stdout();
    let in_place = io::stdout().is_terminal() && !options.json;
    let mut lines_before = 0;
    loop {
        // A daemon that is restarted just now is worth waiting for.
        let mut text = match answer(options, style) {
            Ok(answer) => answer.text,
            Err(error) if options.json => {
                eprintln!("flanneld: {error}");
                String::new()
            }
            Err(error) => format!("flanneld: {error}\n"),
        };
        if in_place {
            text = fitting(&text, window_rows());
            let lines = text.lines().count();
            if lines_before > 0 {
                // Up to the first line of the last table, and away with all below.
                text.insert_str(0, &format!("\x1b[{lines_before}A\x1b[J"));
            }
            lines_before = lines;
        } else if !options.json {
            text.push('\n');
        }
        if print(&text).is_err() {
            return ExitCode::FAILURE;
        }
        sleep(WATCH_EVERY);
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Lines of the terminal, if it knows.
fn window_rows() -> Option<usize> {
    let rows = usize::from(tcgetwinsize(io::stdout()).ok()?.ws_row);
    (rows > 0).then_some(rows)
}

/// What of a text fits on a terminal, with a word about the rest: what has scrolled away could not
/// be replaced.
fn fitting(text: &str, rows: Option<usize>) -> String {
    let lines: Vec<&str> = text.lines().collect();
    // The cursor stands below the last line.
    let Some(room) = rows.map(|rows| rows.saturating_sub(1).max(2)) else { return text.to_owned() };
    if lines.len() <= room {
        return text.to_owned();
    }
    let hidden = lines.len() - (room - 1);
    let shown: String = lines[..room - 1].iter().map(|line| format!("{line}\n")).collect();
    format!("{shown}… {hidden} more lines\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        assert_eq!(fitting("a\nb\nc\n", None), "a\nb\nc\n");
        assert_eq!(fitting("a\nb\nc\n", Some(4)), "a\nb\nc\n");
        assert_eq!(fitting("a\nb\nc\n", Some(3)), "a\n… 2 more lines\n");
        assert_eq!(fitting("a\nb\nc\nd\n", Some(1)), "a\n… 3 more lines\n");
    }
}
