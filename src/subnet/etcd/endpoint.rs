//! Endpoints and certificates, from what the operator gave.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use etcd_client::{Certificate, Identity, TlsOptions};

/// Certificates, as paths to PEM files; empty paths are not given.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The authorities that may sign the server's certificate; the system's if empty.
    pub ca: PathBuf,
    /// Our certificate, if the server asks for one.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl TlsFiles {
    pub(super) fn is_set(&self) -> bool {
        [&self.ca, &self.cert, &self.key].into_iter().any(|path| !path.as_os_str().is_empty())
    }
}

/// The members of the cluster, as URLs without user information.
#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    urls: Vec<String>,
    secure: bool,
}

impl Endpoints {
    /// The first endpoint's scheme decides for all, as upstream (facts 3.8); without a scheme TLS
    /// is used if certificates are given.
    pub(super) fn parse(given: &[String], certificates: bool) -> Result<Self, String> {
        let mut scheme = None;
        let mut hosts = Vec::new();
        for endpoint in given.iter().map(|e| e.trim()).filter(|e| !e.is_empty()) {
            let (own, rest) = match endpoint.split_once("://") {
                Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
                None => (None, endpoint),
            };
            if let Some(other) = own.as_deref().filter(|s| !matches!(*s, "http" | "https")) {
                return Err(format!(
                    "endpoint scheme {other:?} is not supported: use http:// or https://"
                ));
            }
            scheme = scheme.or(Some(own));
            let authority = rest.split('/').next().unwrap_or(rest);
            // What stands before the @ is a secret and serves nothing here.
            let host = authority.rsplit('@').next().unwrap_or(authority);
            if host.len() != authority.len() {
                tracing::warn!(
                    "the user in the URL of etcd endpoint {host} is ignored: \
                     use --etcd-username and --etcd-password"
                );
            }
            if host.is_empty() {
                return Err("an etcd endpoint has no host: expected http://HOST:PORT".into());
            }
            hosts.push(host.to_owned());
        }
        let secure = match scheme.flatten().as_deref() {
            Some("https") => true,
            Some(_) => false,
            None => certificates,
        };
        if hosts.is_empty() {
            return Err("no etcd endpoint given: set --etcd-endpoints=http://HOST:PORT".into());
        }
        let scheme = if secure { "https" } else { "http" };
        let urls = hosts.iter().map(|host| format!("{scheme}://{host}")).collect();
        Ok(Self { urls, secure })
    }

    pub(super) fn describe(&self) -> String {
        format!("etcd at {}", self.urls.join(","))
    }

    pub(super) fn len(&self) -> usize {
        self.urls.len()
    }

    pub(super) fn get(&self, turn: usize) -> &str {
        self.urls.get(turn).map_or("", String::as_str)
    }

    pub(super) fn after(&self, turn: usize) -> usize {
        (turn + 1) % self.urls.len()
    }
}

/// How to talk TLS to the endpoints.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    files: TlsFiles,
}

impl Tls {
    /// `None` if the endpoints want none.
    pub(super) fn new(files: &TlsFiles, endpoints: &Endpoints) -> Result<Option<Self>, String> {
        if !endpoints.secure {
            if files.is_set() {
                tracing::warn!(
                    "{}: certificates are given, but the first endpoint is http: \
                     talking without TLS; use https:// to have it",
                    endpoints.describe()
                );
            }
            return Ok(None);
        }
        let (cert, key) = (files.cert.as_os_str(), files.key.as_os_str());
        if cert.is_empty() != key.is_empty() {
            let (given, missing) = if cert.is_empty() {
                ("--etcd-keyfile", "--etcd-certfile")
            } else {
                ("--etcd-certfile", "--etcd-keyfile")
            };
            return Err(format!("{given} is given without {missing}: give both or neither"));
        }
        let tls = Self { files: files.clone() };
        tls.load().map(|_| Some(tls))
    }

    /// Do we show no certificate?
    pub(super) fn is_anonymous(&self) -> bool {
        self.files.cert.as_os_str().is_empty()
    }

    /// Reads the files as they are now.
    pub(super) fn load(&self) -> Result<TlsOptions, String> {
        let mut options = TlsOptions::new();
        if self.files.ca.as_os_str().is_empty() {
            options = options.with_enabled_roots();
        } else {
            let pem = read(&self.files.ca, "--etcd-cafile", "CERTIFICATE")?;
            options = options.ca_certificate(Certificate::from_pem(pem));
        }
        if !self.files.cert.as_os_str().is_empty() {
            let cert = read(&self.files.cert, "--etcd-certfile", "CERTIFICATE")?;
            let key = read(&self.files.key, "--etcd-keyfile", "PRIVATE KEY")?;
            options = options.identity(Identity::from_pem(cert, key));
        }
        Ok(options)
    }
}

/// Reads a PEM file and checks that it holds what its option wants.
fn read(path: &Path, option: &str, wanted: &str) -> Result<String, String> {
    let pem = fs::read_to_string(path)
        .map_err(|e| format!("cannot read {option}={}: {e}", path.display()))?;
    if !pem.contains(&format!("{wanted}-----")) {
        return Err(format!("{option}={} holds no PEM block {wanted}", path.display()));
    }
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &[&str], certificates: bool) -> Result<Vec<String>, String> {
        let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
        Endpoints::parse(&given, certificates).map(|endpoints| endpoints.urls)
    }

    #[test]
    fn the_first_scheme_decides_for_all() {
        for (given, certificates, wanted) in [
            (&["http://a:1", "https://b:2"][..], true, &["http://a:1", "http://b:2"][..]),
            (&["https://a:1", "http://b:2"], false, &["https://a:1", "https://b:2"]),
            (&["a:1", "https://b:2"], false, &["http://a:1", "http://b:2"]),
            (&["a:1"], true, &["https://a:1"]),
            (&[" http://[::1]:2379/ ", ""], false, &["http://[::1]:2379"]),
        ] {
            assert_eq!(parse(given, certificates).unwrap(), wanted);
        }
    }

    #[test]
    fn secrets_in_urls_are_dropped() {
        let urls = parse(&["https://root:s3cret@a:1/x"], false).unwrap();
        assert_eq!(urls, ["https://a:1"]);
    }

    #[test]
    fn what_cannot_be_an_endpoint_is_refused_with_the_fix() {
        assert!(parse(&[], false).unwrap_err().contains("--etcd-endpoints"));
        assert!(parse(&["unix:///run/etcd"], false).unwrap_err().contains("unix"));
        assert!(parse(&["http://"], false).unwrap_err().contains("HOST:PORT"));
    }

    #[test]
    fn certificates_that_cannot_serve_name_option_file_and_fix() {
        let dir = tempfile::tempdir().unwrap();
        let endpoints = Endpoints::parse(&["https://a:1".to_owned()], true).unwrap();
        let empty = dir.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        let missing = dir.path().join("missing.pem");
        for (files, words) in [
            (TlsFiles { ca: missing, ..TlsFiles::default() }, ["--etcd-cafile=", "missing.pem"]),
            (
                TlsFiles { ca: empty.clone(), ..TlsFiles::default() },
                ["--etcd-cafile=", "CERTIFICATE"],
            ),
            (
                TlsFiles { cert: empty.clone(), ..TlsFiles::default() },
                ["--etcd-certfile", "--etcd-keyfile"],
            ),
            (
                TlsFiles { key: empty.clone(), ..TlsFiles::default() },
                ["--etcd-keyfile", "--etcd-certfile"],
            ),
        ] {
            let error = Tls::new(&files, &endpoints).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
