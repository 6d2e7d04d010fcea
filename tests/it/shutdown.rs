//! The end of a node: what is in flight finishes, and nothing waits for longer than it must.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use tokio::time::Instant;

use crate::kit::client::{Client, PATIENCE};
use crate::kit::fleet::Fleet;
use crate::kit::node::{Setup, end_of};
use crate::kit::origin::{Gate, Origin, Reply};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_a_request_finish_and_ends_with_zero() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    origin.on("/slow", Reply::ok("0123456789").header("Cache-Control", "max-age=60").hold_after(4, &gate));
    let setup = Setup::group(&format!("origin: '{}'", origin.url())).more("shutdown: { delay: 300ms, timeout: 20s }");
    let mut node = setup.start();

    let mut idle = node.connect().await;
    assert_eq!(idle.get("/_groupcache/health").await.status(), 200);
    let mut busy = node.connect().await;
    busy.ask("/slow").await;
    let head = busy.head().await;
    assert_eq!(head.status, 200);

    node.signal("TERM");
    node.wait_until_not_ready();
    // Not ready, yet it still answers on a new connection: load balancers need a moment.
    let answer = node.get("/_groupcache/ready").await;
    assert_eq!((answer.status(), &*answer.text()), (503, "draining\n"));

    // The listener goes, and with it the connection that does nothing.
    assert!(idle.is_closed().await);
    let refused = tokio::net::TcpStream::connect(node.address).await;
    assert!(refused.is_err(), "the listener is still open");

    gate.open();
    let (body, whole) = busy.body(&head).await;
    assert_eq!((&*body, whole), (&b"0123456789"[..], true));
    assert!(busy.is_closed().await);
    assert_eq!(node.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigint_does_not_wait_for_load_balancers() {
    let setup = Setup::group("directory: .").more("shutdown: { delay: 600s, timeout: 600s }");
    let mut node = setup.start();
    let mut idle = node.connect().await;
    assert_eq!(idle.get("/_groupcache/ready").await.text(), "ok\n");
    node.signal("INT");
    assert_eq!(node.ended().await.code(), Some(0));
    assert!(idle.is_closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    origin.on("/slow", Reply::ok("never").hold(&gate));
    let setup = Setup::group(&format!("origin: '{}'", origin.url())).more("shutdown: { delay: 600s, timeout: 600s }");
    let mut node = setup.start();
    let mut busy = node.connect().await;
    busy.ask("/slow").await;
    gate.reached(1).await;
    node.signal("TERM");
    node.wait_until_not_ready();
    node.signal("TERM");
    let status = node.ended().await;
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    assert!(busy.is_closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_finish_is_cut_off_at_the_limit() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    origin.on("/slow", Reply::ok("never").hold(&gate));
    let setup = Setup::group(&format!("origin: '{}'", origin.url())).more("shutdown: { delay: 0s, timeout: 300ms }");
    let mut node = setup.start();
    let mut busy = node.connect().await;
    busy.ask("/slow").await;
    gate.reached(1).await;
    let begun = Instant::now();
    node.signal("TERM");
    assert_eq!(node.ended().await.code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(300) && begun.elapsed() < PATIENCE);
    node.wait_for_log("ending with connections open");
}

/// A node that its parent started must not outlive it: `demo` relies on this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ends_with_its_input() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "listen: [{ address: '127.0.0.1:0' }]\nshutdown: { delay: 600s, timeout: 600s }\ngroups: [{ name: a, directory: . }]\n";
    std::fs::write(folder.path().join("proxy.yaml"), text).expect("writing the configuration");
    let mut child = crate::kit::node::command(folder.path(), &["run", "--until-input-ends", "--config", "proxy.yaml"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the program can be executed");
    drop(child.stdin.take());
    let status = end_of(&mut child).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_taken_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = crate::kit::node::run(folder.path(), &["run", "--origin", ".", "--listen", &address]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("in use") && said.contains(&address), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_connects_while_draining_is_answered() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("a.txt"), "hello").expect("writing a file");
    let setup = Setup::group(&format!("directory: '{}'", folder.path().display()))
        .more("shutdown: { delay: 600s, timeout: 600s }");
    let mut node = setup.start();
    node.signal("TERM");
    node.wait_until_not_ready();
    assert_eq!(Client::connect(node.address).await.get("/a.txt").await.text(), "hello");
    node.signal("TERM");
    node.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_its_fleet_without_losing_a_request() {
    let origin = Origin::start().await;
    let gate = Gate::new();
    origin.on("/slow", Reply::ok("0123456789").header("Cache-Control", "max-age=60").hold_after(4, &gate));
    origin.on("/a", Reply::ok("hello").header("Cache-Control", "max-age=60"));
    let setup = Setup::group(&format!("origin: '{}'", origin.url()));
    let mut fleet = Fleet::start(2, &setup).await;
    let owner = fleet.owner_of("/slow").await;
    let other = 1 - owner;
    // The other node's client reads through the owner, which is told to end meanwhile.
    let mut client = fleet.nodes[other].connect().await;
    client.ask("/slow").await;
    let head = client.head().await;
    fleet.nodes[owner].signal("TERM");
    fleet.nodes[owner].wait_for_log("shutting down");
    gate.open();
    let (body, whole) = client.body(&head).await;
    assert_eq!((&*body, whole), (&b"0123456789"[..], true));
    assert_eq!(fleet.nodes[owner].ended().await.code(), Some(0));
    // Alone, and still answering.
    assert_eq!(fleet.nodes[other].get("/a").await.text(), "hello");
    assert!(!fleet.nodes[owner].log().contains("connections open"), "{}", fleet.nodes[owner].log());
}
