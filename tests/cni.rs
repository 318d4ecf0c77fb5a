//! The CNI plugin with the real plugins behind it: Debian's `containernetworking-plugins`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::cni::{
    Answer, FLANNEL, OUR_PLUGINS, PLUGINS, Runtime, address, error, plugins_or_skip, run,
};
use support::lab::{CONFIG, Lab, LabHost};
use support::netns::Netns;
use support::root_or_skip;
use support::traffic::{End, ping, tcp_transfer, udp_exchange};

/// Our plugin outside of any host, for what it decides alone.
fn alone(variables: &[(&str, &str)], config: &str) -> Answer {
    let mut command = Command::new(FLANNEL);
    command.env_clear().envs(variables.iter().copied());
    run(command, config)
}

#[test]
fn pods_of_three_hosts_talk_and_are_checked() {
    if !plugins_or_skip("pods_of_three_hosts_talk_and_are_checked") {
        return;
    }
    let lab = Lab::new(3);
    let _daemons = lab.start_overlay(&lab.store_dir(CONFIG), |_| vec![]);
    let mut runtimes: Vec<_> = lab.hosts().iter().map(Runtime::new).collect();
    let pods: Vec<_> = (0..3).map(|number| Netns::new(&format!("pod{number}"))).collect();
    let mut results = Vec::new();
    for (runtime, pod) in runtimes.iter_mut().zip(&pods) {
        // Pods shall see each other's own addresses.
        runtime.config["delegate"]["ipMasq"] = json!(false);
        results.push(runtime.add("c1", pod).unwrap());
        assert_eq!(runtime.state(), BTreeSet::from(["c1:eth0".to_owned()]));
    }
    let ends: Vec<_> = pods
        .iter()
        .zip(&results)
        .map(|(netns, result)| End { netns, address: address(result) })
        .collect();
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        let (a, b) = (ends[a], ends[b]);
        ping(a.netns, b.address, 1, "-s 1444 -M do").unwrap();
        ping(b.netns, a.address, 1, "").unwrap();
        udp_exchange(a, b, &[1, 1_444, 9_000]);
        tcp_transfer(a, b, 3_000_000);
    }

    // The next plugin in the chain builds on our result.
    let mut portmap = json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "portmap",
        "runtimeConfig": {
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]
        },
    });
    portmap["prevResult"] = results[0].clone();
    let chained = |command: &str| {
        let mut process = runtimes[0].command("/usr/lib/cni/portmap", command, "c1", "eth0");
        process.env("CNI_NETNS", Path::new("/run/netns").join(pods[0].name()));
        run(process, &portmap.to_string())
    };
    assert_eq!(chained("ADD").unwrap()["ips"], results[0]["ips"]);
    let server = pods[0].listen(SocketAddrV4::new(ends[0].address, 80));
    let mut client =
        lab.host(1).netns.connect(SocketAddrV4::new(lab.host(0).address, 8080)).unwrap();
    let (mut served, _) = server.accept().unwrap();
    client.write_all(b"x").unwrap();
    drop(client);
    assert_eq!(std::io::read_to_string(&mut served).unwrap(), "x");
    chained("DEL").unwrap();

    for ((runtime, pod), result) in runtimes.iter().zip(&pods).zip(&results) {
        let config = runtime.with("prevResult", result.clone());
        assert_eq!(runtime.call("CHECK", "c1", pod, &config), Ok(Value::Null));
        let (code, msg) = error(runtime.call("CHECK", "c2", pod, &config));
        assert_eq!(code, 3, "{msg}");
        assert!(msg.contains("nothing of eth0 of container c2"), "{msg}");

        pod.ip("addr flush dev eth0");
        let (code, msg) = error(runtime.call("CHECK", "c1", pod, &config));
        assert_eq!(code, 999, "{msg}");
        assert!(msg.starts_with("failed to delegate check: bridge: "), "{msg}");

        assert_eq!(runtime.call("DEL", "c1", pod, &config), Ok(Value::Null));
        runtime.assert_nothing_left();
    }
}

/// On three hosts at once, each with fifty pods, ten of them at a time: pods are added, deleted and
/// added again, and in the end all are deleted. On the first host the bridge plugin masquerades,
/// which is flannel's default; on the others, to save time, the daemon does.
#[test]
fn fifty_pods_on_each_host_come_and_go_at_once() {
    if !plugins_or_skip("fifty_pods_on_each_host_come_and_go_at_once") {
        return;
    }
    let lab = Lab::new(3);
    let by_daemon = |host| host > 0;
    let _daemons = lab.start_overlay(&lab.store_dir(CONFIG), |host| {
        if by_daemon(host) { vec!["--ip-masq"] } else { vec![] }
    });
    std::thread::scope(|scope| {
        for (number, host) in lab.hosts().iter().enumerate() {
            let masquerades = if by_daemon(number) { 0 } else { 50 };
            scope.spawn(move || fifty_pods_come_and_go(host, masquerades));
        }
    });
}

fn fifty_pods_come_and_go(host: &LabHost, masquerades: usize) {
    let runtime = Runtime::new(host);
    let pods: Vec<_> =
        (0..50).map(|number| (format!("c{number}"), Netns::new(&format!("pod{number}")))).collect();
    let ten_at_once = |work: &(dyn Fn(&str, &Netns) -> Value + Sync)| -> Vec<Value> {
        std::thread::scope(|scope| {
            let work = |share: &[(String, Netns)]| -> Vec<Value> {
                share.iter().map(|(id, pod)| work(id, pod)).collect()
            };
            let threads: Vec<_> = pods
                .chunks(pods.len() / 10)
                .map(|share| scope.spawn(move || work(share)))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        })
    };
    let results = ten_at_once(&|id, pod| {
        runtime.add(id, pod).unwrap();
        runtime.del(id, pod).unwrap();
        runtime.add(id, pod).unwrap()
    });
    let addresses: BTreeSet<_> = results.iter().map(|r| address(r).to_string()).collect();
    assert_eq!(addresses.len(), 50, "an address was given twice: {addresses:?}");
    assert_eq!(runtime.addresses(), addresses);
    let ids = pods.iter().map(|(id, _)| format!("{id}:eth0")).collect();
    assert_eq!(runtime.state(), ids);
    assert_eq!(runtime.links().len(), 50);
    let rules = runtime.rules();
    assert_eq!(rules.iter().filter(|rule| rule.ends_with("-j MASQUERADE")).count(), masquerades);

    ten_at_once(&|id, pod| runtime.del(id, pod).unwrap());
    runtime.assert_nothing_left();
    for (_, pod) in &pods {
        assert_eq!(pod.ip("-o link").lines().count(), 1, "only lo is left");
    }
}

#[test]
fn deleting_is_done_once_and_not_forgotten() {
    if !plugins_or_skip("deleting_is_done_once_and_not_forgotten") {
        return;
    }
    let lab = Lab::new(1);
    let mut runtime = Runtime::without_daemon(lab.host(0), true);
    let pod = Netns::new("pod");
    let one = BTreeSet::from(["c1:eth0".to_owned()]);
    assert_eq!(runtime.del("c1", &pod), Ok(Value::Null), "it was never added");

    // The delegate fails: nothing is forgotten, and the next try does it.
    runtime.add("c1", &pod).unwrap();
    runtime.search_path = OUR_PLUGINS;
    let (code, msg) = error(runtime.del("c1", &pod));
    assert_eq!(code, 999, "{msg}");
    assert!(msg.starts_with("found no plugin bridge in CNI_PATH="), "{msg}");
    assert_eq!((runtime.state(), runtime.addresses().len()), (one.clone(), 1));
    runtime.search_path = PLUGINS;
    fs::rename(runtime.dir.join("ipam"), runtime.dir.join("ipam-away")).unwrap();
    fs::write(runtime.dir.join("ipam"), "in the way").unwrap();
    let (_, msg) = error(runtime.del("c1", &pod));
    assert!(msg.starts_with("failed to delegate del: bridge: "), "{msg}");
    assert_eq!(runtime.state(), one);
    fs::remove_file(runtime.dir.join("ipam")).unwrap();
    fs::rename(runtime.dir.join("ipam-away"), runtime.dir.join("ipam")).unwrap();
    assert_eq!(runtime.del("c1", &pod), Ok(Value::Null));
    runtime.assert_nothing_left();
    assert_eq!(runtime.del("c1", &pod), Ok(Value::Null), "twice");

    // Added by flannel's own plugin, deleted after subnet.env and the pod's namespace are gone.
    runtime.add("c1", &pod).unwrap();
    fs::rename(runtime.dir.join("state/c1:eth0"), runtime.dir.join("state/c1")).unwrap();
    fs::remove_file(lab.host(0).subnet_file()).unwrap();
    drop(pod);
    let config = runtime.config.to_string();
    assert_eq!(run(runtime.command(FLANNEL, "DEL", "c1", "eth0"), &config), Ok(Value::Null));
    assert_eq!((runtime.state().len(), runtime.addresses().len()), (0, 0));

    // A file that makes no sense keeps no container alive.
    fs::write(runtime.dir.join("state/c1"), "{").unwrap();
    assert_eq!(run(runtime.command(FLANNEL, "DEL", "c1", "eth0"), &config), Ok(Value::Null));
    assert_eq!(runtime.state(), BTreeSet::from(["c1".to_owned()]));
}

#[test]
fn each_interface_of_a_container_is_its_own() {
    if !plugins_or_skip("each_interface_of_a_container_is_its_own") {
        return;
    }
    let lab = Lab::new(1);
    let mut runtime = Runtime::without_daemon(lab.host(0), true);
    runtime.config["delegate"] = json!({});
    let pod = Netns::new("pod");
    let config = runtime.config.to_string();
    let call = |command: &str, ifname: &str| {
        let mut process = runtime.command(FLANNEL, command, "c1", ifname);
        process.env("CNI_NETNS", Path::new("/run/netns").join(pod.name()));
        run(process, &config).unwrap()
    };
    call("ADD", "eth0");
    let second = address(&call("ADD", "net1"));
    assert_eq!(runtime.state(), ["c1:eth0", "c1:net1"].map(str::to_owned).into());
    call("DEL", "eth0");
    assert_eq!(runtime.state(), BTreeSet::from(["c1:net1".to_owned()]));
    assert_eq!(runtime.addresses(), BTreeSet::from([second.to_string()]));
    assert_eq!(runtime.links().len(), 1);
    call("DEL", "net1");
    runtime.assert_nothing_left();
}

#[test]
fn a_failed_add_leaves_nothing_and_a_second_add_breaks_nothing() {
    if !plugins_or_skip("a_failed_add_leaves_nothing_and_a_second_add_breaks_nothing") {
        return;
    }
    let lab = Lab::new(1);
    let runtime = Runtime::without_daemon(lab.host(0), true);
    let pod = Netns::new("pod");
    // Some versions of the bridge plugin are stuck if their very first ADD fails late.
    runtime.add("c0", &pod).unwrap();
    runtime.del("c0", &pod).unwrap();
    let bad = runtime.with("delegate", json!({ "hairpinMode": true, "promiscMode": true }));
    let (code, msg) = error(runtime.call("ADD", "c1", &pod, &bad));
    assert_eq!(code, 999, "{msg}");
    assert!(msg.starts_with("failed to delegate add: bridge: "), "{msg}");
    runtime.assert_nothing_left();
    // The bridge plugin fails late, after it made the link: the route's gateway is out of reach.
    let routes = json!([{ "dst": "10.9.0.0/16", "gw": "10.9.9.9" }]);
    let mut bad = runtime.config.clone();
    bad["ipam"]["routes"] = routes;
    let (_, msg) = error(runtime.call("ADD", "c1", &pod, &bad));
    assert!(msg.contains("10.9.0.0"), "{msg}");
    runtime.assert_nothing_left();

    let first = runtime.add("c1", &pod).unwrap();
    let (_, msg) = error(runtime.add("c1", &pod));
    assert!(msg.contains("already exists"), "{msg}");
    let config = runtime.with("prevResult", first);
    assert_eq!(runtime.call("CHECK", "c1", &pod, &config), Ok(Value::Null));
    runtime.del("c1", &pod).unwrap();
    runtime.assert_nothing_left();
}

#[test]
fn gc_frees_what_the_runtime_does_not_list() {
    if !plugins_or_skip("gc_frees_what_the_runtime_does_not_list") {
        return;
    }
    let lab = Lab::new(1);
    let runtime = Runtime::without_daemon(lab.host(0), true);
    let pods = ["c1", "c2", "c3"].map(|id| (id, Netns::new(id)));
    let results: HashMap<_, _> =
        pods.iter().map(|(id, pod)| (*id, runtime.add(id, pod).unwrap())).collect();
    // Another network's, and one of flannel's own plugin.
    fs::write(runtime.dir.join("state/c9:eth0"), r#"{"name":"other","type":"bridge"}"#).unwrap();
    fs::rename(runtime.dir.join("state/c3:eth0"), runtime.dir.join("state/c3")).unwrap();

    let mut config = runtime.with("cniVersion", json!("1.1.0"));
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
    // The installed bridge plugin may be older than GC; what is ours is done in spite of it.
    if let Err(refusal) = run(runtime.command(FLANNEL, "GC", "", ""), &config.to_string()) {
        let (_, msg) = error(Err(refusal));
        assert!(msg.starts_with("failed to delegate gc: bridge: "), "{msg}");
    }
    assert_eq!(runtime.state(), ["c1:eth0", "c9:eth0"].map(str::to_owned).into());
    assert_eq!(runtime.addresses(), BTreeSet::from([address(&results["c1"]).to_string()]));
}

/// The commands of CNI 1.1.0, with a delegate that knows them.
#[test]
fn the_newest_commands_reach_the_delegate() {
    if !root_or_skip("the_newest_commands_reach_the_delegate") {
        return;
    }
    let lab = Lab::new(1);
    let mut runtime = Runtime::without_daemon(lab.host(0), false);
    runtime.search_path = OUR_PLUGINS;
    runtime.config["cniVersion"] = json!("1.1.0");
    runtime.config["delegate"] = json!({ "type": "recorder", "mine": [1, 2] });
    runtime.config["runtimeConfig"] = json!({ "dns": {} });
    let pod = Netns::new("pod");
    let netns = format!("/run/netns/{}", pod.name());
    let delegate = json!({
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "type": "recorder",
        "mine": [1, 2],
        "ipMasq": true,
        "mtu": 1472,
        "runtimeConfig": { "dns": {} },
        "ipam": {
            "type": "host-local",
            "dataDir": runtime.dir.join("ipam"),
            "ranges": [[{ "subnet": "172.7.21.0/24" }]],
            "routes": [{ "dst": "172.7.0.0/16" }],
        },
    });
    // The calls since the last look: variables and configuration.
    let recorded = || -> Vec<(String, Value)> {
        let text = fs::read_to_string(runtime.dir.join("recorded")).unwrap();
        fs::remove_file(runtime.dir.join("recorded")).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let call = |pair: &[&str]| (pair[0].to_owned(), serde_json::from_str(pair[1]).unwrap());
        lines.chunks(2).map(call).collect()
    };
    let result = json!({ "cniVersion": "1.1.0", "ips": [] });
    for id in ["c1", "c2"] {
        assert_eq!(runtime.add(id, &pod), Ok(result.clone()));
        assert_eq!(recorded(), [(format!("ADD {id} eth0 {netns}"), delegate.clone())]);
    }
    let mut with_result = delegate.clone();
    with_result["prevResult"] = json!({ "ips": [] });
    for command in ["CHECK", "DEL"] {
        let config = runtime.with("prevResult", json!({ "ips": [] }));
        assert_eq!(runtime.call(command, "c1", &pod, &config), Ok(Value::Null));
        assert_eq!(recorded(), [(format!("{command} c1 eth0 {netns}"), with_result.clone())]);
    }
    let config = runtime.config.to_string();
    let status = || runtime.command(FLANNEL, "STATUS", "", "");
    assert_eq!(run(status(), &config), Ok(Value::Null));
    assert_eq!(recorded(), [("STATUS - - -".to_owned(), delegate.clone())]);
    let mut failing = status();
    failing.env("RECORDER_FAIL", "STATUS");
    let wanted = json!({
        "cniVersion": "1.1.0",
        "code": 123,
        "msg": "failed to delegate status: recorder: told to fail",
        "details": "by the test",
    });
    assert_eq!(run(failing, &config), Err(wanted));
    recorded();

    let list = json!([{ "containerID": "c1", "ifname": "eth0" }]);
    let valid = runtime.with("cni.dev/valid-attachments", list.clone()).to_string();
    assert_eq!(run(runtime.command(FLANNEL, "GC", "", ""), &valid), Ok(Value::Null));
    let mut with_list = delegate.clone();
    with_list["cni.dev/valid-attachments"] = list.clone();
    with_list["cni.dev/attachments"] = list;
    assert_eq!(
        recorded(),
        [("DEL c2 eth0 -".to_owned(), delegate), ("GC - - -".to_owned(), with_list)]
    );
    assert_eq!(runtime.state(), BTreeSet::new());

    fs::remove_file(lab.host(0).subnet_file()).unwrap();
    let (code, msg) = error(run(status(), &config));
    assert_eq!(code, 50, "{msg}");
    let (code, msg) = error(runtime.add("c3", &pod));
    assert_eq!(code, 11, "try again later: {msg}");
    assert!(msg.contains("flanneld writes this file, its subnet.env"), "{msg}");
}

#[test]
fn version_and_about() {
    let wanted = json!({
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    });
    assert_eq!(alone(&[("CNI_COMMAND", "VERSION")], ""), Ok(wanted));

    let about = Command::new(FLANNEL).env_clear().stdin(Stdio::null()).output().unwrap();
    assert!(about.status.success() && about.stdout.is_empty());
    let about = String::from_utf8(about.stderr).unwrap();
    assert!(about.starts_with("CNI plugin flannel of flanneld 0."), "{about}");
    assert!(about.contains("\nCNI protocol versions supported: 0.1.0, 0.2.0, "), "{about}");
}

/// Every refusal ends with exit code 1 and JSON that names what is wrong, and leaves no file.
#[test]
fn malformed_calls_get_the_specifications_error() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let subnet_file = dir.path().join("subnet.env");
    fs::write(&subnet_file, "FLANNEL_MTU=1472\n").unwrap();
    let good = json!({
        "cniVersion": "1.1.0", "name": "a", "subnetFile": subnet_file, "dataDir": state,
    });
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config.to_string()
    };
    let variables = |command| {
        [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", PLUGINS),
        ]
    };
    for (command, config, code, words) in [
        ("ADD", String::new(), 6, "cannot decode"),
        ("DEL", "{".repeat(1_000), 6, "cannot decode"),
        ("ADD", format!("{}1{}", "[".repeat(1_000), "]".repeat(1_000)), 6, "cannot decode"),
        ("CHECK", "{}".into(), 7, "name is "),
        ("DEL", with("name", json!("../a")), 7, "name is \"../a\""),
        ("ADD", with("cniVersion", json!("9.9.9")), 1, "incompatible CNI versions"),
        ("CHECK", with("cniVersion", json!("0.3.1")), 1, "does not allow CHECK"),
        ("GC", with("cniVersion", json!("1.0.0")), 1, "does not allow GC"),
        ("GC", good.to_string(), 7, "cni.dev/valid-attachments is null"),
        ("ADD", with("delegate", json!("x")), 7, "delegate is \"x\": an object is wanted"),
        ("ADD", good.to_string(), 6, "subnet.env is missing FLANNEL_NETWORK, FLANNEL_IPV6_"),
        ("ADD", with("subnetFile", json!("/")), 5, "cannot read /: not a regular file"),
        ("CHECK", good.to_string(), 3, "nothing of eth0 of container c1"),
        ("STATUS", good.to_string(), 50, "subnet.env is missing "),
    ] {
        let (found, msg) = error(alone(&variables(command), &config));
        assert_eq!(found, code, "{command} {config}: {msg}");
        assert!(msg.contains(words), "{command} {config}: {msg}");
    }
    for (name, value) in [
        ("CNI_COMMAND", "REMOVE"),
        ("CNI_CONTAINERID", "../../etc/passwd"),
        ("CNI_IFNAME", "../eth0"),
        ("CNI_NETNS", ""),
        ("CNI_PATH", ""),
    ] {
        let changed: HashMap<_, _> = variables("ADD").into_iter().chain([(name, value)]).collect();
        let changed: Vec<_> = changed.into_iter().collect();
        let (code, msg) = error(alone(&changed, &good.to_string()));
        assert_eq!(code, 4, "{name}={value}: {msg}");
        assert!(msg.contains(name) && msg.contains(value), "{name}={value}: {msg}");
    }
    assert!(!state.exists());
}
