//! HTTPS, with a certificate made here.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quarrel_server::{Times, Tls};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::common::start_with;
use crate::wire::{connect, exchange, request, rest, status};

/// Writes a certificate for `localhost` and its key; gives the certificate.
fn make(dir: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap()
}

fn client(at: SocketAddr, trusted: &CertificateDer<'static>) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connection =
        ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    StreamOwned::new(connection, connect(at))
}

/// The status of `/health`, or why there is none.
fn health(at: SocketAddr, trusted: &CertificateDer<'static>) -> std::io::Result<u16> {
    let mut stream = client(at, trusted);
    stream.write_all(&request("GET", "/health", &[], b""))?;
    let answer = rest(&mut stream);
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    Ok(status(&answer))
}

#[test]
fn https_is_served_and_a_new_certificate_taken_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let first = make(dir.path());
    let tls = Arc::new(Tls::open(&dir.path().join("cert.pem"), &dir.path().join("key.pem")).unwrap());
    let at = start_with(move |config| {
        config.tls = Some(tls);
        config.times = Times { handshake: Duration::from_millis(300), ..Times::default() };
    });
    assert_eq!(health(at, &first).unwrap(), 200);
    // Whoever speaks HTTP here is told so.
    let plain = exchange(at, &request("GET", "/health", &[], b""));
    assert!(status(&plain) == 400 && plain.contains("HTTPS"), "{plain}");
    // Whoever says nothing is left.
    assert_eq!(rest(&mut connect(at)), "");
    // Whoever says what is no handshake too.
    let mut odd = connect(at);
    odd.write_all(&[22, 3, 1, 0, 2, 9, 9]).unwrap();
    rest(&mut odd);
    let second = make(dir.path());
    let changed = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        health(at, &second).is_ok()
    });
    assert!(changed, "the new certificate is not served");
    assert!(health(at, &first).is_err());
    // A pair that is no good changes nothing.
    fs::write(dir.path().join("key.pem"), "no key").unwrap();
    let figures = |wanted: &str| {
        let mut stream = client(at, &second);
        stream.write_all(&request("GET", "/metrics", &[], b"")).unwrap();
        rest(&mut stream).lines().any(|l| l.starts_with(wanted) && !l.ends_with(" 0"))
    };
    let failed = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        figures("quarrel_tls_reloads_failed_total ")
    });
    assert!(failed && figures("quarrel_tls_handshakes_failed_total "));
    assert_eq!(health(at, &second).unwrap(), 200);
}
