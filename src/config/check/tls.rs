//! Certificates and keys, tried at load: what reads them later takes a bad file badly (pingora panics).

use std::path::PathBuf;

use pingora_rustls::{CertificateDer, CryptoProvider, PrivateKeyDer, RootCertStore, install_default_crypto_provider};
use rustls_pki_types::pem::PemObject;

use super::super::section::{Checker, Section};
use super::super::values::TlsPair;
use super::super::yaml::Node;
use super::text;

/// Reads the keys `cert` and `key` and tries what they name.
pub(super) fn pair(checker: &mut Checker<'_>, section: &mut Section<'_>) -> TlsPair {
    let (cert_path, cert) = file(checker, section, "cert");
    let (key_path, key) = file(checker, section, "key");
    let certs = cert.and_then(|(node, pem)| certificates(checker, node, &pem));
    let key = key.and_then(|(node, pem)| match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Some((node, key)),
        Err(_) => {
            checker.unexpected(node, "a PEM file with a private key that is not encrypted");
            None
        }
    });
    if let (Some(certs), Some((node, key))) = (certs, key) {
        install_default_crypto_provider();
        let provider = CryptoProvider::get_default();
        let tried = provider.map(|provider| pingora_rustls::sign::CertifiedKey::from_der(certs, key, provider));
        if let Some(Err(error)) = tried {
            checker.unexpected(node, format!("the private key of the certificate ({error})"));
        }
    }
    TlsPair { cert: cert_path, key: key_path }
}

/// Reads `key`, when it is there, as a file of authorities and tries it.
pub(super) fn authorities(checker: &mut Checker<'_>, section: &mut Section<'_>, key: &'static str) -> Option<PathBuf> {
    let node = section.take(key)?;
    let (path, content) = read_file(checker, node);
    if let Some(pem) = content {
        let mut store = RootCertStore::empty();
        let certs = certificates(checker, node, &pem).unwrap_or_default();
        for (index, cert) in certs.into_iter().enumerate() {
            if let Err(error) = store.add(cert) {
                let number = index + 1;
                checker.unexpected(node, format!("certificates of authorities (number {number} is wrong: {error})"));
            }
        }
    }
    Some(path)
}

type Content<'n> = Option<(&'n Node, Vec<u8>)>;

fn file<'n>(checker: &mut Checker<'_>, section: &mut Section<'n>, key: &'static str) -> (PathBuf, Content<'n>) {
    let Some(node) = section.take(key) else {
        checker.missing(section, key, "the path of a PEM file");
        return (PathBuf::new(), None);
    };
    let (path, content) = read_file(checker, node);
    (path, content.map(|content| (node, content)))
}

fn read_file(checker: &mut Checker<'_>, node: &Node) -> (PathBuf, Option<Vec<u8>>) {
    let Some(written) = checker.read(node, text::not_empty("the path of a PEM file")) else {
        return (PathBuf::new(), None);
    };
    let path = checker.resolve(&written);
    match checker.environment.read_file(&path) {
        Ok(content) => (path, Some(content)),
        Err(error) => {
            checker.unexpected_path(node, "a PEM file that can be read", &path, &error.to_string());
            (path, None)
        }
    }
}

fn certificates(checker: &mut Checker<'_>, node: &Node, pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Some(certificates),
        _ => {
            checker.unexpected(node, "a PEM file with at least one certificate");
            None
        }
    }
}
