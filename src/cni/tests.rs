use std::collections::HashMap;
use std::fs;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::delegate::delegate_config;
use super::request::{Attachment, Command};
use super::state::State;
use super::subnet_env::SubnetEnv;
use super::*;

const V4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
                  FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const V6: &str = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:5::1/64\n\
                  FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

fn env(text: &str) -> SubnetEnv {
    SubnetEnv::parse(text).unwrap()
}

fn config(text: &str) -> Result<Config, Error> {
    Config::parse(text.as_bytes())
}

/// The delegate's configuration of `text` with `env`.
fn delegated(text: &str, env: &str) -> Value {
    let env = SubnetEnv::parse(env).unwrap();
    delegate_config(&config(text).unwrap(), &env).unwrap().into()
}

/// What is wrong with `text`.
fn refused(text: &str) -> Error {
    match config(text) {
        Ok(config) => delegate_config(&config, &env(V4)).unwrap_err(),
        Err(error) => error,
    }
}

/// The exit code and stdout of a call with these variables.
fn call(variables: &[(&str, &str)], stdin: &str) -> (ExitCode, Map<String, Value>) {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    let mut stdout = Vec::new();
    let code = run(|name| variables.get(name).map(Into::into), &mut stdin.as_bytes(), &mut stdout);
    (code, serde_json::from_slice(&stdout).unwrap_or_default())
}

#[test]
fn the_least_configuration_gets_a_bridge_with_everything() {
    let wanted = json!({
        "name": "cbr0",
        "type": "bridge",
        "ipMasq": false,
        "isGateway": true,
        "mtu": 1472,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.1.17.0/24" }]],
            "routes": [{ "dst": "10.1.0.0/16" }],
        },
    });
    assert_eq!(delegated(r#"{"name":"cbr0","type":"flannel"}"#, V4), wanted);
    let nulls = r#"{"name":"cbr0","type":"flannel","cniVersion":null,"delegate":null,"ipam":null,
        "subnetFile":null,"dataDir":null,"runtimeConfig":null}"#;
    assert_eq!(delegated(nulls, V4), wanted);
}

#[test]
fn the_operators_wishes_come_first() {
    let text = r#"{"cniVersion":"0.3.1","name":"cbr0","type":"flannel",
        "runtimeConfig":{"portMappings":[{"hostPort":80}]},
        "ipam":{"type":"static","subnet":"1.2.3.0/24","ranges":[],
            "routes":[{"dst":"192.168.0.0/16","gw":"10.1.17.9"}]},
        "delegate":{"type":"ptp","cniVersion":"0.1.0","ipMasq":true,"mtu":9000,
            "hairpinMode":true,"isDefaultGateway":true,"capabilities":{"portMappings":true}}}"#;
    let wanted = json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "ptp",
        "runtimeConfig": { "portMappings": [{ "hostPort": 80 }] },
        "ipMasq": true,
        "mtu": 9000,
        "hairpinMode": true,
        "isDefaultGateway": true,
        "capabilities": { "portMappings": true },
        "ipam": {
            "type": "static",
            "subnet": "1.2.3.0/24",
            "ranges": [[{ "subnet": "10.1.17.0/24" }]],
            "routes": [{ "dst": "192.168.0.0/16", "gw": "10.1.17.9" }, { "dst": "10.1.0.0/16" }],
        },
    });
    assert_eq!(delegated(text, V4), wanted);
    let bridge = delegated(r#"{"name":"a","delegate":{"isGateway":false}}"#, V4);
    assert_eq!(bridge["isGateway"], json!(false));
}

#[test]
fn ipv6_and_several_networks() {
    let v6 = delegated(r#"{"name":"a"}"#, V6);
    assert_eq!(v6["ipMasq"], json!(true), "flannel does not");
    let v6_only = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "fc00:0:0:5::/64" }]],
        "routes": [{ "dst": "fc00::/48" }],
    });
    assert_eq!(v6["ipam"], v6_only);

    let dual = format!(
        "{V4}FLANNEL_NETWORK=10.1.0.0/16,10.2.3.4/16,10.1.0.0/16\n\
         FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:5::1/64\n"
    );
    let dual = delegated(r#"{"name":"a","ipam":{"routes":[{"dst":"::/0"}]}}"#, &dual);
    let wanted = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.1.17.0/24" }], [{ "subnet": "fc00:0:0:5::/64" }]],
        "routes": [
            { "dst": "::/0" },
            { "dst": "10.1.0.0/16" },
            { "dst": "10.2.0.0/16" },
            { "dst": "fc00::/48" },
        ],
    });
    assert_eq!(dual["ipam"], wanted);
}

#[test]
fn paths_have_defaults_and_keys_any_case() {
    let least = config(r#"{"name":"a"}"#).unwrap();
    assert_eq!(least.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!(least.data_dir.to_str(), Some("/var/lib/cni/flannel"));
    assert_eq!(least.version.as_str(), "0.1.0");
    let text = r#"{"NAME":"a","SubnetFile":"/a","datadir":"/b","CniVersion":"1.0.0"}"#;
    let given = config(text).unwrap();
    assert_eq!((given.subnet_file.to_str(), given.data_dir.to_str()), (Some("/a"), Some("/b")));
    assert_eq!(given.version.as_str(), "1.0.0");
}

#[test]
fn a_bad_configuration_is_told_by_key_value_and_fix() {
    for (text, code, words) in [
        ("", 6, "cannot decode the network configuration on stdin: EOF"),
        ("[]", 6, "expected an object"),
        (r#"{"name":"a""#, 6, "EOF while parsing an object"),
        ("null", 7, r#"name is "": the network's name is wanted"#),
        (r#"{"name":"a/b"}"#, 7, r#"name is "a/b": "#),
        (r#"{"name":5}"#, 7, r#"name is 5: a string is wanted"#),
        (r#"{"name":"a","cniVersion":"2.0"}"#, 1, "incompatible CNI versions"),
        (r#"{"name":"a","dataDir":""}"#, 7, r#"dataDir is "": write a path, or leave"#),
        (r#"{"name":"a","subnetFile":[]}"#, 7, r#"subnetFile is []: a string is wanted"#),
        (r#"{"name":"a","ipam":"x"}"#, 7, r#"ipam is "x": an object is wanted"#),
        (r#"{"name":"a","ipam":{"type":1}}"#, 7, r#"ipam.type is 1: write the name of a"#),
        (r#"{"name":"a","ipam":{"routes":{}}}"#, 7, r#"ipam.routes is {}: a list of routes"#),
        (r#"{"name":"a","ipam":{"routes":[{"dst":"10.1.2.3"}]}}"#, 7, "10.1.2.3"),
        (r#"{"name":"a","ipam":{"routes":[{"gw":"10.1.2.3"}]}}"#, 7, "ipam.routes is "),
        (r#"{"name":"a","ipam":{"routes":[{"dst":"::/0","gw":"x"}]}}"#, 7, "ipam.routes is "),
        (r#"{"name":"a","delegate":[]}"#, 7, r#"delegate is []: an object is wanted"#),
        (r#"{"name":"a","delegate":{"type":[1]}}"#, 7, r#"delegate.type is [1]: write the"#),
        (r#"{"name":"a","delegate":{"type":null}}"#, 7, r#"delegate.type is null: "#),
        (r#"{"name":"a","delegate":{"type":"../sh"}}"#, 7, "delegate.type is "),
        (r#"{"name":"a","delegate":{"name":"b"}}"#, 2, r#"delegate.name is "b": remove it"#),
        (r#"{"name":"a","delegate":{"ipam":{}}}"#, 2, r#"delegate.ipam is {}: remove it"#),
        (r#"{"name":"a","runtimeConfig":1}"#, 7, r#"runtimeConfig is 1: an object is"#),
    ] {
        let error = refused(text);
        assert_eq!(error.code, code, "{text}: {error}");
        assert!(error.msg.contains(words), "{text}: {error}");
    }
    let details = refused(r#"{"name":"a","cniVersion":"2.0"}"#).details;
    assert_eq!(
        details,
        "cniVersion is \"2.0\", this plugin serves 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, \
         1.1.0: write one of these"
    );
}

#[test]
fn gc_needs_the_whole_list() {
    let list = |value: &str| {
        let text = format!(r#"{{"name":"a",{value}}}"#);
        config(&text).unwrap().parse_valid_attachments()
    };
    let one = r#"[{"containerID":"c1","ifname":"eth0"}]"#;
    let wanted = vec![Attachment::new("c1", "eth0").unwrap()];
    assert_eq!(list(&format!(r#""cni.dev/valid-attachments":{one}"#)), Ok(wanted.clone()));
    assert_eq!(list(&format!(r#""cni.dev/attachments":{one}"#)), Ok(wanted.clone()));
    let both = format!(r#""cni.dev/valid-attachments":{one},"cni.dev/attachments":[]"#);
    assert_eq!(list(&both), Ok(wanted));
    assert_eq!(list(r#""cni.dev/valid-attachments":[]"#), Ok(Vec::new()));
    for bad in [
        r#""x":1"#,
        r#""cni.dev/valid-attachments":null"#,
        r#""cni.dev/valid-attachments":{}"#,
        r#""cni.dev/valid-attachments":[{"containerID":"c1"}]"#,
        r#""cni.dev/valid-attachments":[{"containerID":"c1","ifname":"a/b"}]"#,
    ] {
        let error = list(bad).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig as u32, "{bad}: {error}");
        assert!(error.msg.contains("cni.dev/valid-attachments is "), "{bad}: {error}");
    }
}

#[test]
fn subnet_env_is_read_strictly() {
    let v4 = env(V4);
    assert_eq!(v4.networks, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(v4.subnet, Some("10.1.17.0/24".parse().unwrap()));
    assert_eq!((v4.mtu, v4.ip_masq), (1472, true));
    assert!(v4.ipv6_networks.is_empty() && v4.ipv6_subnet.is_none());
    let quoted = env(&format!("# note\nOTHER\n{V4}export FLANNEL_MTU=\"1400\" # mine\n"));
    assert_eq!(quoted.mtu, 1400, "as the daemon reads it");

    for (text, wanted) in [
        (
            "",
            "is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, \
             FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
        ),
        (
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_MTU\nFLANNEL_IPMASQ=",
            "is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
        ),
        ("FLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_MTU=1", {
            "is missing FLANNEL_IPMASQ"
        }),
        (
            "FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0",
            "has FLANNEL_NETWORK=\"10.2.0.0\": a network such as 10.1.74.1/24, or \
             fd00:74::1/64 where IPv6 is meant is wanted",
        ),
        ("FLANNEL_MTU=-1", "has FLANNEL_MTU=\"-1\": a number of bytes is wanted"),
    ] {
        assert_eq!(SubnetEnv::parse(text).unwrap_err(), wanted, "{text}");
    }
    assert!(SubnetEnv::parse("FLANNEL_SUBNET=10.1.0.0/16,10.2.0.0/16").is_err(), "one only");
}

#[test]
fn the_runtimes_variables_are_checked() {
    let add = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    let read = |changes: &[(&str, &str)]| {
        let all: HashMap<_, _> = add.iter().chain(changes).copied().collect();
        Request::from_env(|name| all.get(name).map(Into::into))
    };
    let attachment = Attachment::new("c1", "eth0").unwrap();
    let wanted = |command| Request::Work { command, search_path: "/opt/cni/bin".into() };
    assert_eq!(read(&[]), Ok(wanted(Command::Add(attachment.clone()))));
    assert_eq!(
        read(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")]),
        Ok(wanted(Command::Del(attachment.clone())))
    );
    assert_eq!(read(&[("CNI_COMMAND", "CHECK")]), Ok(wanted(Command::Check(attachment))));
    let none = [("CNI_CONTAINERID", ""), ("CNI_IFNAME", ""), ("CNI_NETNS", "")];
    for (command, request) in [("GC", wanted(Command::Gc)), ("STATUS", wanted(Command::Status))] {
        assert_eq!(read(&[&none[..], &[("CNI_COMMAND", command)]].concat()), Ok(request));
    }
    assert_eq!(read(&[("CNI_COMMAND", "VERSION"), ("CNI_PATH", "")]), Ok(Request::Version));
    assert_eq!(read(&[("CNI_COMMAND", "")]), Ok(Request::About));

    let error = read(&none).unwrap_err();
    assert_eq!(error.code, Code::InvalidEnvironment as u32);
    let names = "ADD needs the variables CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME: set them";
    assert_eq!(error.msg, names);
    for (name, value) in [
        ("CNI_COMMAND", "add"),
        ("CNI_CONTAINERID", "../c1"),
        ("CNI_CONTAINERID", ".c1"),
        ("CNI_CONTAINERID", "c1:eth0"),
        ("CNI_CONTAINERID", "c 1"),
        ("CNI_CONTAINERID", "ü"),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "a\u{2003}b"),
        ("CNI_IFNAME", "sixteen-bytes-xx"),
    ] {
        let error = read(&[(name, value)]).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment as u32, "{name}={value}: {error}");
        assert!(error.msg.starts_with(&format!("{name} is {value:?}: ")), "{error}");
    }
    assert!(read(&[("CNI_IFNAME", "fifteen-bytes-x"), ("CNI_CONTAINERID", "A.b_c-9")]).is_ok());
}

#[test]
fn errors_are_the_specifications_json() {
    let variables = [("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/nowhere")];
    let (code, error) = call(&variables, r#"{"name":"a","cniVersion":"0.4.0"}"#);
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
    let msg = "cniVersion 0.4.0 does not allow STATUS: write 1.1.0 or a later one";
    assert_eq!(Value::from(error), json!({ "cniVersion": "0.4.0", "code": 1, "msg": msg }));

    let text = r#"{"name":"a","cniVersion":"1.1.0","subnetFile":"/nowhere/subnet.env"}"#;
    let (_, error) = call(&variables, text);
    assert_eq!(error["code"], json!(Code::NotAvailable as u32), "{error:?}");
    assert!(error["msg"].as_str().unwrap().contains("/nowhere/subnet.env: "), "{error:?}");

    let (_, error) = call(&variables, r#"{"name":"a","cniVersion":"7"}"#);
    assert_eq!((&error["cniVersion"], &error["code"]), (&json!("1.1.0"), &json!(1)));
    assert!(error["details"].as_str().unwrap().starts_with("cniVersion is \"7\""), "{error:?}");
}

#[test]
fn routes_get_the_gateway_of_their_family() {
    let mut result = json!({
        "ips": [
            { "address": "10.1.17.2/24", "gateway": "10.1.17.1" },
            { "address": "fc00:0:0:5::2/64", "gateway": "fc00:0:0:5::1" },
        ],
        "routes": [
            { "dst": "fc00::/48" },
            { "dst": "10.1.0.0/16" },
            { "dst": "0.0.0.0/0", "gw": "10.1.17.9" },
        ],
    });
    plugin::name_gateways(&mut result);
    let wanted = json!([
        { "dst": "fc00::/48", "gw": "fc00:0:0:5::1" },
        { "dst": "10.1.0.0/16", "gw": "10.1.17.1" },
        { "dst": "0.0.0.0/0", "gw": "10.1.17.9" },
    ]);
    assert_eq!(result["routes"], wanted);

    // Nothing to go by.
    let bare = json!({ "ips": [{ "gateway": 5 }], "routes": [{ "dst": "::/0" }, 7, {}] });
    for mut result in [bare, json!({}), json!([]), json!({ "routes": {}, "ips": 1 })] {
        let before = result.clone();
        plugin::name_gateways(&mut result);
        assert_eq!(result, before);
    }
}

#[test]
fn files_are_one_per_attachment_and_flannels_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let state = State(directory.path());
    let [a, b] = ["eth0", "net1"].map(|ifname| Attachment::new("c1", ifname).unwrap());
    state.save(&a, r#"{"n":1}"#).unwrap();
    state.save(&b, r#"{"n":2}"#).unwrap();
    let number = |attachment| {
        let saved = state.load(attachment).unwrap()?;
        saved.delegate.unwrap()["n"].as_i64()
    };
    assert_eq!((number(&a), number(&b)), (Some(1), Some(2)));

    fs::write(directory.path().join("c1"), r#"{"n":3}"#).unwrap();
    fs::write(directory.path().join(".c1:eth0.unfinished"), "{").unwrap();
    fs::create_dir(directory.path().join("directory")).unwrap();
    assert_eq!(state.list().unwrap().len(), 3);
    state.load(&a).unwrap().unwrap().remove().unwrap();
    assert_eq!((number(&a), number(&b)), (Some(3), Some(2)), "flannel's file serves eth0 now");
    let other = Attachment::new("c2", "eth0").unwrap();
    assert_eq!(number(&other), None);
    for (listed, saved) in state.list().unwrap() {
        assert!(saved.may_be_of(&listed, &listed) && !saved.may_be_of(&other, &listed));
        assert_eq!(saved.may_be_of(&b, &listed), listed == b || listed == a);
    }
}

#[test]
fn files_that_a_kill_left_unfinished_go_with_the_next_pod() {
    let directory = tempfile::tempdir().unwrap();
    let state = State(directory.path());
    let files = [
        (".c1:eth0.a1B2c3", 600, false),
        (".c1.d:net1.7.a1B2c3", 86_400, false),
        // Somebody may be at work.
        (".c2:eth0.a1B2c3", 300, true),
        // Not ours.
        (".c1.a1B2c3", 86_400, true),
        (".c1:eth0", 86_400, true),
        ("c1:eth0.a1B2c3", 86_400, true),
        ("c3:eth0", 86_400, true),
    ];
    for (name, age_s, _) in files {
        let file = fs::File::create(directory.path().join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
    }
    state.save(&Attachment::new("c4", "eth0").unwrap(), "{}").unwrap();
    for (name, _, stays) in files {
        assert_eq!(directory.path().join(name).exists(), stays, "{name}");
    }
    assert!(directory.path().join("c4:eth0").exists());
}

#[test]
fn what_is_accepted_at_any_depth_can_be_read_back() {
    let mut accepted = 0;
    for depth in 100..200 {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        let text = format!(r#"{{"name":"a","runtimeConfig":{{"x":{open}{close}}}}}"#);
        if let Ok(config) = config(&text) {
            let delegate = Value::from(delegate_config(&config, &env(V4)).unwrap());
            assert_eq!(serde_json::from_str::<Value>(&delegate.to_string()).unwrap(), delegate);
            accepted += 1;
        }
    }
    assert!((1..100).contains(&accepted), "{accepted}");
}

proptest! {
    #[test]
    fn no_configuration_panics(text in "\\PC*", value in "[{}\\[\\]\":,a-z0-9./]*") {
        for text in [text, format!(r#"{{"name":"a","delegate":{value},"ipam":{value}}}"#)] {
            if let Ok(config) = config(&text) {
                let _ = delegate_config(&config, &env(V4));
                let _ = config.parse_valid_attachments();
            }
        }
    }
}
