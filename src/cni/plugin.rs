//! The commands.
#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use super::config::{CniVersion, Config, VALID_ATTACHMENTS};
use super::delegate::{delegate_config, plugin_of};
use super::error::{Code, Error};
use super::exec::{Plugin, Whom, to_text};
use super::request::{Attachment, Command};
use super::state::{Saved, State};
use super::subnet_env::SubnetEnv;

type Delegate = Map<String, Value>;

/// Does one command; returns what goes to stdout.
pub(super) fn run(command: &Command, config: &Config, search_path: &str) -> Result<Vec<u8>, Error> {
    let nothing = |()| Vec::new();
    match command {
        Command::Add(attachment) => add(attachment, config, search_path),
        Command::Del(attachment) => del(attachment, config, search_path).map(nothing),
        Command::Check(attachment) => {
            since(CniVersion::WITH_CHECK, "CHECK", config)?;
            check(attachment, config, search_path).map(nothing)
        }
        Command::Gc => {
            since(CniVersion::LATEST, "GC", config)?;
            gc(config, search_path).map(nothing)
        }
        Command::Status => {
            since(CniVersion::LATEST, "STATUS", config)?;
            status(config, search_path).map(nothing)
        }
    }
}

fn since(first: CniVersion, command: &str, config: &Config) -> Result<(), Error> {
    if config.version >= first {
        return Ok(());
    }
    let (first, version) = (first.as_str(), config.version.as_str());
    Err(Error::new(
        Code::IncompatibleVersion,
        format!("cniVersion {version} does not allow {command}: write {first} or a later one"),
    ))
}

fn add(attachment: &Attachment, config: &Config, search_path: &str) -> Result<Vec<u8>, Error> {
    let env = SubnetEnv::read(&config.subnet_file)?;
    let delegate = delegate_config(config, &env)?;
    let plugin = Plugin::find(plugin_of(&delegate)?, search_path)?;
    let text = to_text(&delegate);
    eprintln!("{text}");

    let state = State(&config.data_dir);
    let added_before = state.load(attachment)?.is_some();
    // First, so that whatever the delegate does can be undone even if this process is killed.
    state.save(attachment, &text)?;
    plugin.add(&delegate).inspect_err(|_| {
        // The specification wants a failed ADD to be undone. But where the runtime added twice
        // by mistake, that would tear down what works.
        if !added_before && let Err(error) = undo(attachment, &plugin, &delegate, state) {
            eprintln!("flannel: after the failed ADD: {error}");
        }
    })
}

fn undo(
    attachment: &Attachment,
    plugin: &Plugin<'_>,
    delegate: &Delegate,
    state: State<'_>,
) -> Result<(), Error> {
    plugin.call("DEL", Whom::AsCalled, delegate)?;
    state.load(attachment)?.map_or(Ok(()), |saved| saved.remove())
}

fn del(attachment: &Attachment, config: &Config, search_path: &str) -> Result<(), Error> {
    // Deleted before, or never added.
    let Some(saved) = State(&config.data_dir).load(attachment)? else { return Ok(()) };
    match &saved.delegate {
        Ok(delegate) => {
            let delegate = with_previous_result(delegate, config);
            detach(&saved, &delegate, Whom::AsCalled, search_path)
        }
        Err(error) => {
            // A failure would keep the runtime from ever ending this container.
            let path = saved.path().display();
            eprintln!("flannel: {path} is no delegate's configuration: {error}; nothing deleted");
            Ok(())
        }
    }
}

/// Has the delegate delete, and only then forgets: whoever fails is asked again.
fn detach(
    saved: &Saved,
    delegate: &Delegate,
    whom: Whom<'_>,
    search_path: &str,
) -> Result<(), Error> {
    let plugin = Plugin::find(plugin_of(delegate)?, search_path)?;
    plugin.call("DEL", whom, delegate)?;
    saved.remove()
}

fn check(attachment: &Attachment, config: &Config, search_path: &str) -> Result<(), Error> {
    let saved = State(&config.data_dir).load(attachment)?.ok_or_else(|| {
        let Attachment { container_id, ifname } = attachment;
        let dir = config.data_dir.display();
        Error::new(
            Code::UnknownContainer,
            format!("{dir} knows nothing of {ifname} of container {container_id}: add it first"),
        )
    })?;
    let delegate = saved.delegate.as_ref().map_err(|error| {
        let path = saved.path().display();
        Error::new(Code::Decoding, format!("{path} is no delegate's configuration: {error}"))
    })?;
    let plugin = Plugin::find(plugin_of(delegate)?, search_path)?;
    let mut delegate = with_previous_result(delegate, config);
    if let Some(result) = delegate.get_mut("prevResult") {
        name_gateways(result);
    }
    plugin.call("CHECK", Whom::AsCalled, &delegate)?;
    Ok(())
}

/// The configuration of the ADD with what that returned. The runtime writes a result in the
/// version that it asks for now.
fn with_previous_result(delegate: &Delegate, config: &Config) -> Delegate {
    let mut delegate = delegate.clone();
    if let Some(result) = &config.prev_result {
        delegate.insert("prevResult".into(), result.clone());
        delegate.insert("cniVersion".into(), config.version.as_str().into());
    }
    delegate
}

/// Gives routes without a gateway the one that they were installed with: the address's, as bridge
/// and its kin fill it in on ADD. In the result it is missing, as in the routes that flannel adds;
/// and without it their CHECK does not find the routes.
pub(super) fn name_gateways(result: &mut Value) {
    let is_v6 = |text: &Value| text.as_str().is_some_and(|text| text.contains(':'));
    let ips = result.get("ips").and_then(Value::as_array).cloned().unwrap_or_default();
    let gateways: Vec<&Value> = ips.iter().filter_map(|ip| ip.get("gateway")).collect();
    let routes = result.get_mut("routes").and_then(Value::as_array_mut);
    for route in routes.into_iter().flatten().filter_map(Value::as_object_mut) {
        let Some(dst) = route.get("dst") else { continue };
        let fitting = gateways.iter().find(|gateway| is_v6(gateway) == is_v6(dst));
        if let Some(gateway) = fitting.copied().cloned() {
            route.entry("gw").or_insert(gateway);
        }
    }
}

/// Deletes this network's attachments that the runtime does not list, then has the delegate look
/// for more. Goes on after errors; returns the first.
fn gc(config: &Config, search_path: &str) -> Result<(), Error> {
    let valid = config.parse_valid_attachments()?;
    let mut result = Ok(());
    for (attachment, saved) in State(&config.data_dir).list()? {
        // What cannot be read may be another network's.
        let Ok(delegate) = &saved.delegate else { continue };
        let ours = delegate.get("name").and_then(Value::as_str) == Some(&config.name);
        let is_valid = |valid: &Attachment| saved.may_be_of(valid, &attachment);
        if ours && !valid.iter().any(is_valid) {
            let done = detach(&saved, delegate, Whom::Stale(&attachment), search_path);
            result = result.and(done);
        }
    }
    result.and(gc_by_delegate(config, search_path))
}

fn gc_by_delegate(config: &Config, search_path: &str) -> Result<(), Error> {
    let env = SubnetEnv::read(&config.subnet_file)?;
    let mut delegate = delegate_config(config, &env)?;
    for key in VALID_ATTACHMENTS {
        delegate.insert(key.into(), config.valid_attachments.clone().into());
    }
    let plugin = Plugin::find(plugin_of(&delegate)?, search_path)?;
    plugin.call("GC", Whom::AsCalled, &delegate)?;
    Ok(())
}

/// Whether an ADD would work, as far as can be said without one.
fn status(config: &Config, search_path: &str) -> Result<(), Error> {
    let unavailable = |error: Error| Error { code: Code::NotAvailable as u32, ..error };
    let env = SubnetEnv::read(&config.subnet_file).map_err(unavailable)?;
    let delegate = delegate_config(config, &env)?;
    let plugin = Plugin::find(plugin_of(&delegate)?, search_path).map_err(unavailable)?;
    plugin.call("STATUS", Whom::AsCalled, &delegate)?;
    Ok(())
}
