//! A real etcd of the test's own: on free loopback ports, with its data in a temporary directory.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{
    Certificate, Client, ConnectOptions, Identity, Permission, PermissionType, TlsOptions,
};
use flanneld::subnet::etcd::{EtcdConfig, EtcdStore, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

use super::{daemon, skip};

/// What flannel's keys begin with unless told otherwise.
pub const PREFIX: &str = "/coreos.com/network";

/// The user that [`Etcd::enable_auth`] makes for the daemon.
pub const USER: (&str, &str) = ("flannel", "s3cret-of-flannel");
const ROOT: (&str, &str) = ("root", "s3cret-of-root");

/// How etcd talks to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Plain,
    /// TLS; clients need no certificate.
    Server,
    /// TLS; clients need a certificate.
    Mutual,
}

/// A member, killed and cleared away on drop.
pub struct Etcd {
    child: Option<Child>,
    dir: TempDir,
    security: Security,
    client_port: Port,
    peer_port: Port,
    auth: bool,
    args: Vec<String>,
}

/// Is there an etcd to run? Says so loudly if not.
pub fn etcd_or_skip(test: &str) -> bool {
    let found = Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        skip(test, "etcd (apt-get install etcd-server)");
    }
    found
}

/// Is there the operator's client? Says so loudly if not.
pub fn etcdctl_or_skip(test: &str) -> bool {
    let found = Command::new("etcdctl").arg("version").stdout(Stdio::null()).status().is_ok();
    if !found {
        skip(test, "etcdctl (apt-get install etcd-client)");
    }
    found
}

/// A port that is free, and stays free for us among all tests that run now: etcd must find it again
/// after it was killed, and nobody else may answer there meanwhile.
struct Port {
    number: u16,
    /// Locked as long as this lives.
    _claim: File,
}

impl Port {
    fn claim() -> Self {
        let claims = std::env::temp_dir().join("flanneld-test-ports");
        fs::create_dir_all(&claims).unwrap();
        loop {
            // Below the range from which the kernel draws ports for connections.
            let number = rand::random_range(20_000..32_000_u16);
            let claim = File::create(claims.join(number.to_string())).unwrap();
            if claim.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _claim: claim };
            }
        }
    }
}

/// An endpoint where nobody listens, as long as this lives.
pub struct DeadEndpoint(Port);

impl DeadEndpoint {
    pub fn new() -> Self {
        Self(Port::claim())
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.number)
    }
}

impl Etcd {
    pub async fn start(security: Security) -> Self {
        let mut etcd = Self::prepare(security);
        etcd.start_again().await;
        etcd
    }

    /// A member that will be started later.
    pub fn prepare(security: Security) -> Self {
        let dir = data_dir();
        make_certificates(dir.path());
        let (client_port, peer_port) = (Port::claim(), Port::claim());
        Self { child: None, dir, security, client_port, peer_port, auth: false, args: Vec::new() }
    }

    /// Gives it these flags, too, whenever it is started.
    pub fn with_args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Starts it, on the same ports and with the data that it has, and waits until it serves.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "etcd runs already");
        self.child = Some(self.spawn());
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(self.wait_until_ready(deadline).await, "etcd does not start:\n{}", self.log());
    }

    fn spawn(&self) -> Child {
        let log = File::create(self.dir.path().join("log")).unwrap();
        let (client, peer) = (self.endpoint(), self.peer());
        let mut command = Command::new("etcd");
        command
            .args(["--name", "test", "--data-dir"])
            .arg(self.data())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            // A single member need not wait long for its own vote; and leases may be as short as
            // one second then.
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(&self.args)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if self.security != Security::Plain {
            command.arg("--cert-file").arg(self.file("server.pem"));
            command.arg("--key-file").arg(self.file("server-key.pem"));
        }
        if self.security == Security::Mutual {
            command.arg("--trusted-ca-file").arg(self.file("ca.pem"));
            command.arg("--client-cert-auth");
        }
        command.spawn().unwrap()
    }

    async fn wait_until_ready(&mut self, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            let answer = async {
                let mut client = self.try_client().await.ok()?;
                client.get("ready?", None).await.ok()
            };
            if let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(1), answer).await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        false
    }

    /// Kills it as a power failure would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Forgets all data of a member that does not run.
    pub fn empty(&mut self) {
        assert!(self.child.is_none(), "kill etcd first");
        fs::remove_dir_all(self.data()).unwrap();
        self.auth = false;
    }

    /// Copies the data of a member that does not run, for [`Self::restore`].
    pub fn back_up(&self) -> TempDir {
        assert!(self.child.is_none(), "kill etcd first");
        let copy = tempfile::tempdir().unwrap();
        let status =
            Command::new("cp").arg("-a").arg(self.data()).arg(copy.path()).status().unwrap();
        assert!(status.success());
        copy
    }

    /// Puts a copy back.
    pub fn restore(&mut self, copy: &TempDir) {
        self.empty();
        let from = copy.path().join("data");
        let status = Command::new("cp").arg("-a").arg(from).arg(self.data()).status().unwrap();
        assert!(status.success());
    }

    /// Saves a snapshot of a running member; returns the file.
    pub fn save_snapshot(&self) -> PathBuf {
        let file = self.file("snapshot.db");
        self.etcdctl(&["snapshot", "save", path(&file)]);
        file
    }

    /// Gives a member that does not run the data of a snapshot instead of its own.
    pub fn restore_snapshot(&mut self, file: &Path) {
        self.empty();
        let (peer, data) = (self.peer(), self.data());
        let cluster = format!("test={peer}");
        let restore = ["snapshot", "restore", path(file), "--data-dir", path(&data)];
        let member = ["--name", "test", "--initial-cluster", &cluster];
        let address = ["--initial-advertise-peer-urls", &peer];
        self.etcdctl(&[restore.as_slice(), &member, &address].concat());
    }

    /// Does as an operator does, to a member without TLS and passwords.
    pub fn etcdctl(&self, args: &[&str]) {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint()]).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "etcdctl {args:?}: {output:?}");
    }

    /// Stops it without closing its connections, as a hanging machine does. Returns when it stands
    /// still.
    pub fn freeze(&self) {
        daemon::freeze(self.child.as_ref().unwrap());
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        daemon::thaw(self.child.as_ref().unwrap());
    }

    /// Compacts all history.
    pub async fn compact(&self) {
        let mut client = self.client().await;
        let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
        client.compact(revision, None).await.unwrap();
    }

    /// How many requests it has answered since it was started whose `label` is `value`, from its
    /// metric `grpc_server_handled_total`.
    pub fn answered(&self, label: &str, value: &str) -> u64 {
        let address = ("127.0.0.1", self.client_port.number);
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let wanted = format!("{label}=\"{value}\"");
        text.lines()
            .filter(|line| line.starts_with("grpc_server_handled_total{") && line.contains(&wanted))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
            .sum()
    }

    /// Makes a user for the daemon and asks everybody for a password from now on.
    pub async fn enable_auth(&mut self) {
        let mut client = self.client().await;
        client.user_add(ROOT.0, ROOT.1, None).await.unwrap();
        client.role_add("root").await.unwrap();
        client.user_grant_role(ROOT.0, "root").await.unwrap();
        client.user_add(USER.0, USER.1, None).await.unwrap();
        client.role_add("flannel").await.unwrap();
        permit(&mut client, PermissionType::Readwrite).await;
        client.user_grant_role(USER.0, "flannel").await.unwrap();
        client.auth_enable().await.unwrap();
        self.auth = true;
    }

    /// Takes the right to write away from the daemon's user.
    pub async fn make_read_only(&self) {
        permit(&mut self.client().await, PermissionType::Read).await;
    }

    pub fn endpoint(&self) -> String {
        let scheme = if self.security == Security::Plain { "http" } else { "https" };
        format!("{scheme}://127.0.0.1:{}", self.client_port.number)
    }

    fn peer(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port.number)
    }

    /// What a daemon is given to reach this member.
    pub fn config(&self) -> EtcdConfig {
        let mut tls = TlsFiles::default();
        if self.security != Security::Plain {
            tls.ca = self.file("ca.pem");
        }
        if self.security == Security::Mutual {
            tls.cert = self.file("client.pem");
            tls.key = self.file("client-key.pem");
        }
        let (username, password) = if self.auth { USER } else { ("", "") };
        EtcdConfig {
            endpoints: vec![self.endpoint()],
            prefix: PREFIX.into(),
            tls,
            username: username.into(),
            password: password.into(),
        }
    }

    pub async fn store(&self) -> EtcdStore {
        EtcdStore::connect(self.config()).await.unwrap()
    }

    /// The plain client of the library, with all rights.
    pub async fn client(&self) -> Client {
        self.try_client().await.unwrap()
    }

    async fn try_client(&self) -> Result<Client, etcd_client::Error> {
        let mut options = ConnectOptions::new();
        if self.security != Security::Plain {
            let mut tls =
                TlsOptions::new().ca_certificate(Certificate::from_pem(self.pem("ca.pem")));
            if self.security == Security::Mutual {
                let (cert, key) = (self.pem("client.pem"), self.pem("client-key.pem"));
                tls = tls.identity(Identity::from_pem(cert, key));
            }
            options = options.with_tls(tls);
        }
        if self.auth {
            options = options.with_user(ROOT.0, ROOT.1);
        }
        Client::connect([self.endpoint()], Some(options)).await
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pem(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    fn data(&self) -> PathBuf {
        self.file("data")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }
}

/// Gives the daemon's user this right, and no other, to all keys under the prefix.
async fn permit(client: &mut Client, right: PermissionType) {
    let permission = Permission::new(right, PREFIX).with_prefix();
    client.role_grant_permission("flannel", permission).await.unwrap();
}

fn path(path: &Path) -> &str {
    path.to_str().expect("made of ASCII")
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("--- the last lines of etcd's log, newest first");
            lines.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A directory in memory where there is room: etcd waits for the disk at each write, gives up after
/// seconds, and others write there, too.
fn data_dir() -> TempDir {
    const MEMORY: &str = "/dev/shm";
    const ROOM_BYTES: u64 = 1 << 30;
    let room = |fs: rustix::fs::StatVfs| fs.f_bavail * fs.f_frsize;
    match rustix::fs::statvfs(MEMORY).map(room) {
        Ok(room) if room >= ROOM_BYTES => tempfile::tempdir_in(MEMORY).unwrap(),
        _ => tempfile::tempdir().unwrap(),
    }
}

/// `ca.pem`, and `server.pem` and `client.pem` with their keys, all signed by it.
pub fn make_certificates(dir: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.distinguished_name.push(DnType::CommonName, "authority of the test");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::from_params(&ca, &ca_key);
    for (name, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate().unwrap();
        // The last ones are the relay's and the README's.
        let names = ["127.0.0.1", "localhost", "10.4.7.1", "10.4.7.12"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        // etcd's own gateway is a client of the server, with the server's certificate.
        params.extended_key_usages = vec![usage, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
}
