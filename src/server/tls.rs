//! Certificates of a listener: chosen by server name, read again when their files change.
//!
//! pingora asks the resolver at every handshake, so that a new certificate serves without a restart and without dropping a
//! connection. A file that cannot be used leaves the old certificate in place.

use std::fs::Metadata;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::ALPN;
use pingora_rustls::sign::CertifiedKey;
use pingora_rustls::{
    CertificateDer, ClientHello, CryptoProvider, ResolvesServerCert, RootCertStore, ServerName, WebPkiClientVerifier,
    install_default_crypto_provider, load_ca_file_into_store, load_certs_and_key_files,
};
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;

use crate::config::TlsPair;

/// How often the files of certificates are looked at. Guess: far below the time between a renewal and an expiry.
pub const CERTIFICATES_POLL: Duration = Duration::from_secs(10);

/// The certificates of one listener.
#[derive(Debug)]
pub struct Certificates {
    pairs: Vec<TlsPair>,
    loaded: ArcSwap<Vec<Arc<CertifiedKey>>>,
    seen: Mutex<Vec<FileStamp>>,
}

impl Certificates {
    /// Reads all pairs.
    ///
    /// # Errors
    /// Names the file that cannot be used, and why.
    pub fn load(pairs: &[TlsPair]) -> Result<Arc<Self>, String> {
        install_default_crypto_provider();
        let seen = stamps(pairs);
        let loaded = load_all(pairs)?;
        Ok(Arc::new(Certificates {
            pairs: pairs.to_vec(),
            loaded: ArcSwap::from_pointee(loaded),
            seen: Mutex::new(seen),
        }))
    }

    /// Reads the files again if one of them changed; says whether the certificates were replaced.
    ///
    /// # Errors
    /// When the new files cannot be used: the old certificates stay, and the next change is waited for.
    pub fn refresh(&self) -> Result<bool, String> {
        let found = stamps(&self.pairs);
        if *self.seen.lock() == found {
            return Ok(false);
        }
        // Noted before reading: a file that changes while it is read is read once more.
        *self.seen.lock() = found;
        self.loaded.store(Arc::new(load_all(&self.pairs)?));
        Ok(true)
    }

    /// The settings of a listener for clients: HTTP/2 and HTTP/1.1 by ALPN.
    pub fn for_clients(self: &Arc<Self>) -> TlsSettings {
        let mut settings = self.settings();
        settings.set_alpn(ALPN::H2H1);
        settings
    }

    /// The settings of a listener for peers alone: HTTP/1.1, and a certificate of the fleet's authority on both sides.
    ///
    /// # Errors
    /// When the authority's file cannot be used.
    pub fn for_peers(self: &Arc<Self>, authority: &Path) -> Result<TlsSettings, String> {
        let mut roots = RootCertStore::empty();
        load_ca_file_into_store(authority, &mut roots)
            .map_err(|error| format!("{}: {}", authority.display(), error.etype().as_str()))?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
            .build()
            .map_err(|error| format!("{}: {error}", authority.display()))?;
        let mut settings = self.settings();
        settings.set_alpn(ALPN::H1);
        settings.set_client_cert_verifier(verifier);
        Ok(settings)
    }

    #[allow(clippy::expect_used)]
    fn settings(self: &Arc<Self>) -> TlsSettings {
        // The paths are only read without a resolver, and the constructor itself cannot fail.
        let mut settings = TlsSettings::intermediate("", "").expect("settings without files");
        settings.set_cert_resolver(self.clone());
        settings
    }
}

impl ResolvesServerCert for Certificates {
    /// The first certificate that is valid for the name and whose key the client can check. Without such a name the first
    /// of all: who connects by address gets an answer, and whether to believe it is the client's decision.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let loaded = self.loaded.load();
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let matching = named.and_then(|name| loaded.iter().filter(usable).find(|key| is_valid_for(key, &name)));
        matching.or_else(|| loaded.iter().find(usable)).or(loaded.first()).cloned()
    }
}

fn is_valid_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let Some(certificate) = key.cert.first() else { return false };
    ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
}

fn load_all(pairs: &[TlsPair]) -> Result<Vec<Arc<CertifiedKey>>, String> {
    pairs.iter().map(|pair| load_pair(pair).map(Arc::new)).collect()
}

fn load_pair(pair: &TlsPair) -> Result<CertifiedKey, String> {
    let (cert, key) = (pair.cert.to_string_lossy(), pair.key.to_string_lossy());
    let read = load_certs_and_key_files(&cert, &key)
        .map_err(|error| format!("{cert}, {key}: {}", error.etype().as_str()))?
        .ok_or_else(|| format!("{cert}, {key}: no certificate or no private key in them"))?;
    let (certificates, private_key): (Vec<CertificateDer<'static>>, _) = read;
    let provider = CryptoProvider::get_default().ok_or("no cryptography")?;
    CertifiedKey::from_der(certificates, private_key, provider).map_err(|error| format!("{cert}, {key}: {error}"))
}

/// What tells a changed file from an unchanged one without reading it; `None` while it is not there.
type FileStamp = Option<(SystemTime, u64, u64)>;

fn stamps(pairs: &[TlsPair]) -> Vec<FileStamp> {
    use std::os::unix::fs::MetadataExt;
    let stamp = |metadata: Metadata| Some((metadata.modified().ok()?, metadata.len(), metadata.ino()));
    // Symbolic links are followed: a Kubernetes secret changes where its links lead to.
    let paths = pairs.iter().flat_map(|pair| [&pair.cert, &pair.key]);
    paths.map(|path| std::fs::metadata(path).ok().and_then(stamp)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(folder: &Path, file: &str, names: &[&str]) -> TlsPair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let pair = TlsPair { cert: folder.join(format!("{file}.pem")), key: folder.join(format!("{file}.key")) };
        // Replaced as operators do: written aside and moved, so that the file is another one.
        for (path, text) in [(&pair.cert, made.cert.pem()), (&pair.key, made.signing_key.serialize_pem())] {
            let aside = path.with_extension("new");
            std::fs::write(&aside, text).unwrap();
            std::fs::rename(&aside, path).unwrap();
        }
        pair
    }

    fn serves(certificates: &Certificates, name: &str) -> Option<usize> {
        let name = ServerName::try_from(name).unwrap();
        certificates.loaded.load().iter().position(|key| is_valid_for(key, &name))
    }

    #[test]
    fn a_certificate_is_found_by_its_names_wildcards_included() {
        let folder = tempfile::tempdir().unwrap();
        let pairs = [
            write_pair(folder.path(), "one", &["a.example", "127.0.0.1"]),
            write_pair(folder.path(), "two", &["*.b.example"]),
        ];
        let certificates = Certificates::load(&pairs).unwrap();
        for (name, expected) in [
            ("a.example", Some(0)),
            ("A.EXAMPLE", Some(0)),
            ("x.b.example", Some(1)),
            ("b.example", None),
            ("x.y.b.example", None),
            ("other.example", None),
        ] {
            assert_eq!(serves(&certificates, name), expected, "{name}");
        }
    }

    #[test]
    fn changed_files_are_read_again_and_broken_ones_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let pair = write_pair(folder.path(), "one", &["a.example"]);
        let certificates = Certificates::load(std::slice::from_ref(&pair)).unwrap();
        assert_eq!(certificates.refresh(), Ok(false));
        write_pair(folder.path(), "one", &["b.example"]);
        assert_eq!(certificates.refresh(), Ok(true));
        assert_eq!((serves(&certificates, "a.example"), serves(&certificates, "b.example")), (None, Some(0)));

        std::fs::write(&pair.cert, "not a certificate").unwrap();
        assert!(certificates.refresh().is_err());
        assert_eq!(serves(&certificates, "b.example"), Some(0));
        assert_eq!(certificates.refresh(), Ok(false), "reported once per change");
    }
}
