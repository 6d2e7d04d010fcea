//! How many connections there may be, in all and from one address.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::stats::NodeStats;

/// Counts open connections of clients. Connections of peers and of the administration are not counted against the limits,
/// so that a flood of clients does not lock them out.
#[derive(Debug)]
pub struct Admission {
    stats: Arc<NodeStats>,
    connections_max: usize,
    connections_per_address_max: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Admission {
    /// No connection yet; a limit of 0 is none.
    pub fn new(stats: Arc<NodeStats>, connections_max: usize, connections_per_address_max: usize) -> Self {
        Admission { stats, connections_max, connections_per_address_max, by_address: Mutex::default() }
    }

    /// Lets a connection in until the answer is dropped; `Err` names the limit that it would pass.
    pub fn admit(self: &Arc<Self>, address: Option<IpAddr>, limited: bool) -> Result<Admitted, &'static str> {
        let before = self.stats.connections.fetch_add(1, Ordering::Relaxed);
        let mut admitted = Admitted { admission: self.clone(), address: None };
        if limited && self.connections_max > 0 && before >= self.connections_max {
            return Err("connections");
        }
        if limited
            && self.connections_per_address_max > 0
            && let Some(address) = address
        {
            let mut by_address = self.by_address.lock();
            let count = by_address.entry(address.to_canonical()).or_default();
            if *count >= self.connections_per_address_max {
                return Err("connections_per_address");
            }
            *count += 1;
            admitted.address = Some(address.to_canonical());
        }
        Ok(admitted)
    }
}

/// A connection that was let in.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    address: Option<IpAddr>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.stats.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.address {
            let mut by_address = self.admission.by_address.lock();
            if let Some(count) = by_address.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    by_address.remove(&address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_are_given_back() {
        let stats = Arc::new(NodeStats::default());
        let admission = Arc::new(Admission::new(stats.clone(), 3, 2));
        let (a, b) = (Some("10.0.0.1".parse().unwrap()), Some("10.0.0.2".parse().unwrap()));
        let first = admission.admit(a, true).unwrap();
        let _second = admission.admit(Some("::ffff:10.0.0.1".parse().unwrap()), true).unwrap();
        assert_eq!(admission.admit(a, true).unwrap_err(), "connections_per_address");
        let _third = admission.admit(b, true).unwrap();
        assert_eq!(admission.admit(b, true).unwrap_err(), "connections");
        let _peer = admission.admit(b, false).unwrap();
        assert_eq!(stats.connections.load(Ordering::Relaxed), 4);
        drop((first, _peer));
        let _again = admission.admit(a, true).unwrap();
        assert_eq!(stats.connections.load(Ordering::Relaxed), 3);
        assert_eq!(admission.by_address.lock().len(), 2);
    }
}
