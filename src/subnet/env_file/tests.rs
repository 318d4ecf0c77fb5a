use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> PreviousSubnet {
    PreviousSubnet::parse(text)
}

fn v4() -> EnvFile {
    let config = NetworkConfig::parse(r#"{"Network":"10.42.0.0/16"}"#).unwrap();
    EnvFile::new(&config, &"10.42.0.0-24".parse().unwrap(), 1472, false)
}

fn dual() -> EnvFile {
    let config =
        r#"{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56"}"#;
    let config = NetworkConfig::parse(config).unwrap();
    EnvFile::new(&config, &"10.42.1.0-24&2001:cafe:42::-64".parse().unwrap(), 1450, true)
}

#[test]
fn the_text_is_upstreams() {
    assert_eq!(
        v4().to_string(),
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\n\
         FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
    );
    assert_eq!(
        dual().to_string(),
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\n\
         FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n\
         FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
}

#[test]
fn what_was_written_is_read_back_masked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/subnet.env");
    assert_eq!(read_previous(&path).unwrap(), PreviousSubnet::default());

    dual().write_atomic(&path).unwrap();
    let previous = read_previous(&path).unwrap();
    assert_eq!(previous.network, Some("10.42.0.0/16".parse().unwrap()));
    assert_eq!(previous.ipv6_network, Some("2001:cafe:42::/56".parse().unwrap()));
    assert_eq!(previous.wanted(), Some("10.42.1.0-24&2001:cafe:42::-64".parse().unwrap()));

    v4().write_atomic(&path).unwrap();
    assert_eq!(read_previous(&path).unwrap().wanted(), Some("10.42.0.0-24".parse().unwrap()));
    assert_eq!(fs::read_to_string(&path).unwrap(), v4().to_string());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(names, 1, "no temporary file is left");
}

#[test]
fn errors_name_the_file_and_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();

    let path = file.join("subnet.env");
    let error = v4().write_atomic(&path).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot write subnet file {}: ", path.display())),
        "{error}"
    );
    assert!(error.ends_with("or choose another file by --subnet-file"), "{error}");
    assert!(v4().write_atomic(directory.path()).is_err(), "a directory stands there");
    assert!(v4().write_atomic(Path::new("/")).is_err());

    let error = read_previous(directory.path()).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    fs::write(&file, " ".repeat(65 * 1024)).unwrap();
    let error = read_previous(&file).unwrap_err().to_string();
    assert!(error.contains("longer than 65536 bytes"), "{error}");
}

#[test]
fn a_hand_made_file_is_understood() {
    let previous = parse(
        "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\n\
         FLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n",
    );
    assert_eq!(previous.network, Some("172.7.0.0/16".parse().unwrap()));
    assert_eq!(previous.wanted(), Some("172.7.21.0-24".parse().unwrap()));
}

#[test]
fn dotenv_spellings_are_understood() {
    for line in [
        "FLANNEL_SUBNET=10.42.1.1/24",
        "  FLANNEL_SUBNET = 10.42.1.1/24  ",
        "export FLANNEL_SUBNET=10.42.1.1/24",
        "export\tFLANNEL_SUBNET=\"10.42.1.1/24\"",
        "FLANNEL_SUBNET='10.42.1.1/24' # mine",
        "FLANNEL_SUBNET: 10.42.1.1/24",
        "FLANNEL_SUBNET=10.42.1.1/24 # mine, not 10.42.2.1/24",
        "FLANNEL_SUBNET=10.42.1.1/24\r\n",
        "# FLANNEL_SUBNET=10.42.2.1/24\nFLANNEL_SUBNET=10.42.1.1/24",
        "FLANNEL_SUBNET=10.42.2.1/24\nFLANNEL_SUBNET=10.42.1.1/24",
        "stray words\n=\n\nFLANNEL_SUBNET=10.42.1.1/24\n\"",
        "FLANNEL_SUBNET=10.42.1.1/24,nonsense,10.42.1.1/33",
        "FLANNEL_SUBNET=,10.42.1.1/24",
    ] {
        assert_eq!(parse(line).subnet, Some("10.42.1.0/24".parse().unwrap()), "{line:?}");
    }
    let previous = parse("FLANNEL_IPV6_SUBNET: fd00:1::1/64\nFLANNEL_IPV6_NETWORK=fd00::/48,x");
    assert_eq!(previous.ipv6_subnet, Some("fd00:1::/64".parse().unwrap()));
    assert_eq!(previous.ipv6_network, Some("fd00::/48".parse().unwrap()));
    assert_eq!(previous.wanted(), None, "no lease without IPv4");
}

#[test]
fn what_is_no_single_network_is_ignored() {
    for line in [
        "",
        "FLANNEL_SUBNET=",
        "FLANNEL_SUBNET=#10.42.1.1/24",
        "FLANNEL_SUBNET=10.42.1.1",
        "FLANNEL_SUBNET=fd00::1/64",
        "FLANNEL_SUBNET=0.0.0.0/0",
        "FLANNEL_SUBNET=10.42.1.1/24,10.42.2.1/24",
        "FLANNEL_SUBNET=\"10.42.1.1/24",
        "FLANNEL_SUBNET2=10.42.1.1/24",
        "exportFLANNEL_SUBNET=10.42.1.1/24",
        "FLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_SUBNET=",
    ] {
        assert_eq!(parse(line), PreviousSubnet::default(), "{line:?}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*", value in "[0-9./,:#'\" \u{2003}ü]*") {
        let _ = parse(&text);
        let _ = parse(&format!("FLANNEL_SUBNET={value}\nFLANNEL_IPV6_SUBNET: {value}"));
    }
}
