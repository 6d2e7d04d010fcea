//! A name server on loopback that says what a test tells it, over UDP (RFC 1035, RFC 2782).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// What is said of a name.
#[derive(Clone, Debug)]
pub enum Says {
    /// These addresses.
    Addresses(Vec<Ipv4Addr>),
    /// These targets and ports.
    Services(Vec<(String, u16)>),
    /// The name does not exist.
    NoName,
    /// It exists and has nothing.
    Nothing,
    /// Bytes that are no answer.
    Garbage,
}

/// The running server.
pub struct NameServer {
    /// Where it is asked.
    pub address: SocketAddr,
    names: Arc<Mutex<HashMap<String, Says>>>,
    serving: JoinHandle<()>,
}

impl NameServer {
    /// A server that knows nothing yet.
    pub async fn start() -> NameServer {
        let socket = UdpSocket::bind(super::node::LOOPBACK).await.expect("a free port");
        let address = socket.local_addr().expect("an address");
        let names: Arc<Mutex<HashMap<String, Says>>> = Arc::default();
        let said = names.clone();
        let serving = tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((bytes, from)) = socket.recv_from(&mut buffer).await {
                let answer = answer(&buffer[..bytes], &said.lock().expect("names"));
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        NameServer { address, names, serving }
    }

    /// From now on it says this of `name`.
    pub fn says(&self, name: &str, says: Says) {
        self.names.lock().expect("names").insert(name.to_owned(), says);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

const A: u16 = 1;
const SRV: u16 = 33;

fn answer(query: &[u8], names: &HashMap<String, Says>) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut at = 12;
    while *query.get(at)? != 0 {
        let length = usize::from(query[at]);
        name.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + length)?).to_ascii_lowercase());
        at += 1 + length;
    }
    let question = query.get(12..at + 5)?;
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let says = names.get(&name.join(".")).cloned().unwrap_or(Says::NoName);
    let records: Vec<Vec<u8>> = match (&says, kind) {
        (Says::Garbage, _) => return Some(vec![0xff; 40]),
        (Says::Addresses(addresses), A) => addresses.iter().map(|address| address.octets().to_vec()).collect(),
        (Says::Services(services), SRV) => services
            .iter()
            .map(|(target, port)| {
                let mut data = vec![0, 0, 0, 0];
                data.extend_from_slice(&port.to_be_bytes());
                for label in target.split('.') {
                    data.push(label.len() as u8);
                    data.extend_from_slice(label.as_bytes());
                }
                data.push(0);
                data
            })
            .collect(),
        _ => Vec::new(),
    };
    let mut answer = query[..2].to_vec();
    // An answer with authority and recursion; 3 is "no such name".
    answer.extend_from_slice(&[0x85, if matches!(says, Says::NoName) { 0x83 } else { 0x80 }]);
    answer.extend_from_slice(&[0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    for data in records {
        // The name of the question, this type, class IN, a second to live.
        answer.extend_from_slice(&[0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 1]);
        answer.extend_from_slice(&(data.len() as u16).to_be_bytes());
        answer.extend_from_slice(&data);
    }
    Some(answer)
}
