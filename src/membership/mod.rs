//! Who belongs to the fleet, where that is not written in the configuration: logic without sockets and without a clock.
//!
//! [`gossip`] finds members and notices their failure, [`seal`] protects what it sends, and [`damping`] decides when somebody
//! who failed is relied on again. Events go in with the time at which they happen; packets, timers and lists of members come
//! out. The sockets, files and names are in `server::membership`.

pub mod damping;
pub mod gossip;
pub mod seal;
