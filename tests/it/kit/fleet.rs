//! Several nodes that know each other.

use super::node::{Node, Setup, free_addresses};

/// A running fleet; each node is killed when it is dropped.
pub struct Fleet {
    /// The nodes, in the order of their list of peers.
    pub nodes: Vec<Node>,
}

impl Fleet {
    /// So many nodes with the same groups, ready and connected with each other.
    pub async fn start(count: usize, setup: &Setup) -> Fleet {
        Fleet::with(count, setup, "").await
    }

    /// The same, with further keys of `fleet`.
    pub async fn with(count: usize, setup: &Setup, keys: &str) -> Fleet {
        let addresses = free_addresses(count);
        let peers: Vec<String> = addresses.iter().map(|address| format!("'http://{address}'")).collect();
        let setups = addresses.iter().map(|&address| {
            let own = format!("fleet: {{ self: 'http://{address}', peers: [{}], {keys} }}\n", peers.join(", "));
            Setup { address, more: format!("{}{own}", setup.more), ..setup.clone() }
        });
        // Side by side: each computes its ring first.
        let started: Vec<_> = setups.map(|setup| std::thread::spawn(move || setup.start())).collect();
        let nodes = started.into_iter().map(|node| node.join().expect("a node"));
        let fleet = Fleet { nodes: nodes.collect() };
        for node in &fleet.nodes {
            node.wait_until_connected().await;
        }
        fleet
    }

    /// The node that owns a key's target, as the first one sees it.
    pub async fn owner_of(&self, target: &str) -> usize {
        let question = format!("/_groupcache/explain?path={target}");
        let explained = super::client::get(self.nodes[0].admin, &question).await.json();
        let owner = explained["owner"].as_str().expect("an owner").to_owned();
        self.nodes.iter().position(|node| node.url() == owner).expect("the owner is a node")
    }

    /// Requests of clients that the caches of the group `all` have seen begin.
    pub async fn asked_by_clients(&self) -> u64 {
        let mut sum = 0;
        for node in &self.nodes {
            // Of one moment: `gets` counts questions of peers, too.
            let group = node.group("all").await;
            let counter = |name: &str| group[name].as_u64().expect("a counter");
            sum += counter("gets").saturating_sub(counter("server_requests"));
        }
        sum
    }

    /// Sum of a counter of the group `all` over the nodes that live.
    pub async fn sum(&self, counter: &str) -> u64 {
        let mut sum = 0;
        for node in &self.nodes {
            sum += node.group("all").await[counter].as_u64().expect("a counter");
        }
        sum
    }
}
