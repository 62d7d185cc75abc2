//! TLS by rustls: a certificate and its key from PEM files, read again when they change or on SIGHUP. A pair that is no good
//! never replaces one that is.

use std::fmt;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};

/// The longest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// What tells that a file has changed.
type Stamp = [Option<(SystemTime, u64)>; 2];

/// A certificate that is served, and where it comes from.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: Arc<Current>,
    seen: Mutex<Stamp>,
    config: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("cert", &self.cert).field("key", &self.key).finish_non_exhaustive()
    }
}

/// The pair that new connections get.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its private key, both PEM.
    pub fn open(cert: &Path, key: &Path) -> Result<Tls> {
        let provider = Arc::new(ring::default_provider());
        let seen = stamp(cert, key);
        let pair = pair(cert, key, &provider)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(pair))));
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context("TLS cannot be set up")?
            .with_no_client_auth();
        let mut config = config.with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls {
            cert: cert.to_owned(),
            key: key.to_owned(),
            provider,
            current,
            seen: Mutex::new(seen),
            config: Arc::new(config),
        })
    }

    /// What connections are accepted with.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Reads the files again; with an error the old pair stays.
    pub(crate) fn reload(&self) -> Result<()> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamp(&self.cert, &self.key);
        let pair = pair(&self.cert, &self.key, &self.provider)?;
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pair);
        Ok(())
    }

    /// Whether a file is not as it was when it was last read.
    pub(crate) fn changed(&self) -> bool {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) != stamp(&self.cert, &self.key)
    }
}

fn stamp(cert: &Path, key: &Path) -> Stamp {
    [cert, key].map(|path| {
        let data = fs::metadata(path).ok()?;
        Some((data.modified().ok()?, data.len()))
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        bail!("longer than {BYTES_MAX} bytes; is it the right file?");
    }
    Ok(bytes)
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

fn pair(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey> {
    let at = |flag: &str, path: &Path| format!("{flag} {}", path.display());
    let chain = chain(cert).with_context(|| at("--tls-cert", cert))?;
    let private = private(key).with_context(|| at("--tls-key", key))?;
    let signing = provider.key_provider.load_private_key(private);
    let signing = signing
        .context("this kind of key is not known; RSA, ECDSA (P-256, P-384) and Ed25519 are")
        .with_context(|| at("--tls-key", key))?;
    let pair = CertifiedKey::new(chain, signing);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(pair),
        Err(rustls::Error::InconsistentKeys(_)) => bail!(
            "the key {} is not that of the first certificate in {}; a chain begins with the server's own certificate",
            key.display(),
            cert.display()
        ),
        Err(e) => Err(e).with_context(|| at("--tls-cert", cert)),
    }
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| anyhow::anyhow!("this is not PEM as it should be: {e:?}"))?;
    if !chain.is_empty() {
        return Ok(chain);
    }
    if has(&bytes, "PRIVATE KEY-----") {
        bail!("this is a private key, not a certificate; are --tls-cert and --tls-key the wrong way round?");
    }
    if bytes.first() == Some(&0x30) {
        bail!("this is DER, and PEM is needed: openssl x509 -inform der -in FILE -out FILE.pem");
    }
    bail!("there is no certificate in it; PEM is needed: -----BEGIN CERTIFICATE-----");
}

fn private(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let bytes = read(path)?;
    if has(&bytes, "BEGIN ENCRYPTED PRIVATE KEY") || has(&bytes, "Proc-Type: 4,ENCRYPTED") {
        bail!(
            "this key is encrypted, and a server has nobody to ask for the password: \
             openssl pkey -in FILE -out FILE.plain, readable only by the server"
        );
    }
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(key) => Ok(key),
        Err(rustls::pki_types::pem::Error::NoItemsFound) if has(&bytes, "BEGIN CERTIFICATE") => {
            bail!(
                "this is a certificate, not a private key; are --tls-cert and --tls-key the wrong way round?"
            )
        }
        Err(rustls::pki_types::pem::Error::NoItemsFound) => {
            bail!("there is no private key in it; PEM is needed: -----BEGIN PRIVATE KEY-----")
        }
        Err(e) => bail!("this is not PEM as it should be: {e:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let ((cert, key), (_, other)) = (made("a.test"), made("b.test"));
        let der = vec![0x30, 0x82, 0x01, 0x00];
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let torn = cert.replace("-----END", "----END");
        let cases: [(&[u8], &[u8], &str); 10] = [
            (cert.as_bytes(), other.as_bytes(), "is not that of the first certificate"),
            (key.as_bytes(), cert.as_bytes(), "the wrong way round"),
            (cert.as_bytes(), cert.as_bytes(), "the wrong way round"),
            (cert.as_bytes(), encrypted.as_bytes(), "encrypted"),
            (cert.as_bytes(), old.as_bytes(), "encrypted"),
            (&der, key.as_bytes(), "this is DER"),
            (b"", key.as_bytes(), "no certificate in it"),
            (cert.as_bytes(), b"hello", "no private key in it"),
            (torn.as_bytes(), key.as_bytes(), "not PEM as it should be"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", key.as_bytes(), "--tls-cert"),
        ];
        let dir = tempfile::tempdir().unwrap();
        let (c, k) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        for (cert, key, wanted) in cases {
            fs::write(&c, cert).unwrap();
            fs::write(&k, key).unwrap();
            let said = format!("{:#}", Tls::open(&c, &k).unwrap_err());
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        fs::remove_file(&c).unwrap();
        let said = format!("{:#}", Tls::open(&c, &k).unwrap_err());
        assert!(said.starts_with(&format!("--tls-cert {}", c.display())), "{said}");
    }

    #[test]
    fn a_new_pair_is_taken_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (c, k) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let write = |(cert, key): (String, String)| {
            fs::write(&c, cert).unwrap();
            fs::write(&k, key).unwrap();
        };
        write(made("a.test"));
        let tls = Tls::open(&c, &k).unwrap();
        let served = || tls.current.0.read().unwrap().cert[0].clone();
        let first = served();
        assert!(!tls.changed());
        write(made("a-longer-name.test"));
        assert!(tls.changed());
        tls.reload().unwrap();
        let second = served();
        assert!(first != second && !tls.changed());
        fs::write(&k, "broken").unwrap();
        assert!(tls.changed() && tls.reload().is_err());
        // It is tried once for each change, not again and again.
        assert!(!tls.changed());
        assert_eq!(served(), second);
    }
}
