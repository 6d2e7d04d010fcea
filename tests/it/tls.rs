//! Listeners with TLS: the certificate by server name, both versions of HTTP, and new files without a restart.

use std::path::Path;
use std::sync::Arc;

use pingora_rustls::{ClientConfig, RootCertStore, ServerName, TlsConnector, install_default_crypto_provider};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::client::within;
use crate::kit::node::Node;

struct Pair {
    certificate: pingora_rustls::CertificateDer<'static>,
}

fn write_pair(folder: &Path, file: &str, name: &str) -> Pair {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    std::fs::write(folder.join(format!("{file}.pem")), made.cert.pem()).expect("writing the certificate");
    std::fs::write(folder.join(format!("{file}.key")), made.signing_key.serialize_pem()).expect("writing the key");
    Pair { certificate: made.cert.der().clone() }
}

/// Connects under `name`, trusting `pair` alone; says which protocol was chosen and what came back for a request.
async fn ask(
    address: std::net::SocketAddr,
    name: &str,
    pair: &Pair,
    protocol: &str,
) -> std::io::Result<(String, String)> {
    install_default_crypto_provider();
    let mut roots = RootCertStore::empty();
    roots.add(pair.certificate.clone()).expect("a root");
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = within(TcpStream::connect(address)).await?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut stream = within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await?;
    let chosen = stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
    let request: &[u8] = match protocol {
        "h2" => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        _ => b"GET /_groupcache/health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    };
    within(stream.write_all(request)).await?;
    let mut received = vec![0; 64];
    let length = within(stream.read(&mut received)).await?;
    Ok((chosen.unwrap_or_default(), String::from_utf8_lossy(&received[..length]).into_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_follow_the_server_name_and_their_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let one = write_pair(folder.path(), "one", "one.example");
    let two = write_pair(folder.path(), "two", "two.example");
    let text = "listen: [{ address: '127.0.0.1:0', tls: [{ cert: one.pem, key: one.key }, { cert: two.pem, key: two.key }] }]\n\
                admin: { address: '127.0.0.1:0' }\nlog: { format: json }\ngroups: [{ name: all, directory: . }]\n";
    std::fs::write(folder.path().join("proxy.yaml"), text).expect("writing the configuration");
    let node = Node::run(folder, &[], &["run", "--config", "proxy.yaml"]);

    for (name, pair) in [("one.example", &one), ("two.example", &two)] {
        let (chosen, answer) = ask(node.address, name, pair, "http/1.1").await.expect("an answer");
        assert_eq!(chosen, "http/1.1");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let (chosen, settings) = ask(node.address, name, pair, "h2").await.expect("an answer");
        assert_eq!(chosen, "h2");
        assert!(!settings.is_empty());
    }
    assert!(ask(node.address, "two.example", &one, "http/1.1").await.is_err(), "the other certificate");

    let renewed = write_pair(&node.folder(), "two", "two.example");
    node.wait_for_log("certificates read again");
    assert!(ask(node.address, "two.example", &renewed, "http/1.1").await.is_ok());
    assert!(ask(node.address, "one.example", &one, "http/1.1").await.is_ok());
}
