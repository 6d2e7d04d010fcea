//! The commands as a shell sees them: output, exit code, one line of error.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};

use crate::kit::client;
use crate::kit::node::{Setup, command, free_addresses, run, signal};
use crate::kit::origin::{Origin, Reply};

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn bad_usage_is_one_line_and_exit_code_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for arguments in [
        &["bogus"][..],
        &["run", "--bogus"],
        &["run", "--listen", ":8080"],
        &["run", "--origin", "http://127.0.0.1:1", "--watch"],
        &["run", "--origin", "http://127.0.0.1:1", "--ttl", "soon"],
        &["run", "--origin", "ftp://127.0.0.1"],
        &["run"],
        &["demo", "--nodes", "0"],
        &["demo", "--origin", "not-there"],
        &["explain"],
        &["explain", "no-slash", "--node", "http://127.0.0.1:1"],
        &["stats", "no-url"],
        &["stats"],
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
        assert_eq!(said(&output).lines().count(), 1, "{arguments:?}: {}", said(&output));
        assert_eq!(out(&output), "", "{arguments:?}");
    }
}

#[test]
fn help_shows_an_example_and_version_the_version() {
    let folder = Path::new(".");
    for command in ["run", "check", "demo", "init", "stats", "explain"] {
        let output = run(folder, &[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(out(&output).contains("groupcache-proxy "), "{command}");
    }
    assert_eq!(out(&run(folder, &["--version"])), format!("groupcache-proxy {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn check_shows_every_mistake_or_what_is_in_effect() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |text: &str| std::fs::write(folder.path().join("a.yaml"), text).expect("writing the configuration");
    write("memory: lots\ngroups:\n  - name: stats\n    origin: http://127.0.0.1:9\n    freshnes: {}\n");
    let output = run(folder.path(), &["check", "--config", "a.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<String> = said(&output).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, start) in lines.iter().zip(["a.yaml:1:9: memory", "a.yaml:3:", "a.yaml:5:5: groups[0].freshnes"]) {
        assert!(line.starts_with(start), "{line}");
    }

    write("admin: { token: 'a-secret-of-16-bytes' }\ngroups: [{ name: a, origin: 'http://127.0.0.1:9' }]\n");
    let output = run(folder.path(), &["check", "--config", "a.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(out(&output).contains("# default") && out(&output).contains("***"));
    assert!(!out(&output).contains("a-secret"));

    write(
        "fleet: { peers: ['http://192.0.2.1:1'], secret: '${NOT_SET_ANYWHERE}' }\ngroups: [{ name: a, origin: 'http://127.0.0.1:9' }]\n",
    );
    assert_eq!(run(folder.path(), &["check", "--config", "a.yaml"]).status.code(), Some(1));
    let output = run(folder.path(), &["check", "--config", "a.yaml", "--allow-unset"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn init_writes_what_check_and_run_accept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    assert_eq!(run(folder.path(), &["init"]).status.code(), Some(0));
    let output = run(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(run(folder.path(), &["init"]).status.code(), Some(1), "it exists");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_origin_needs_no_file() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("hello"));
    let address = free_addresses(1)[0].to_string();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let arguments = ["run", "--origin", &origin.url(), "--listen", &address, "--ttl", "60s"];
    let mut child =
        command(folder.path(), &arguments).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program");
    let mut line = String::new();
    BufReader::new(child.stderr.take().expect("standard error")).read_line(&mut line).expect("a line");
    assert!(line.contains(&address), "{line}");
    let address = address.parse().expect("an address");
    assert_eq!(client::get(address, "/a").await.text(), "hello");
    let second = client::get(address, "/a").await;
    assert!(second.head.cache_status().contains("hit"), "{}", second.head.text);
    assert_eq!(origin.requests("/a"), 1);
    signal(child.id(), "KILL");
    child.wait().expect("its end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stats_and_explain_ask_the_node() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("hello").header("Cache-Control", "max-age=60"));
    let setup = Setup {
        admin: "allow: [], read_token: reading-token-12".into(),
        ..Setup::group(&format!("origin: '{}'", origin.url()))
    };
    let node = setup.start();
    node.get("/a").await;
    let folder = node.folder();
    let url = node.admin_url();
    let with_token = |arguments: &[&str]| {
        command(&folder, arguments)
            .env("GROUPCACHE_READ_TOKEN", "reading-token-12")
            .stdin(Stdio::null())
            .output()
            .expect("the program can be executed")
    };
    let output = with_token(&["stats", &url]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(out(&output).contains("ready") && out(&output).contains("all"), "{}", out(&output));
    let json: serde_json::Value = serde_json::from_str(&out(&with_token(&["stats", &url, "--json"]))).expect("JSON");
    assert_eq!(json["groups"]["all"]["local_loads"], 1);
    let output = with_token(&["explain", "/a", "--node", &url]);
    assert!(out(&output).contains("stored        main"), "{}{}", out(&output), said(&output));
    let output = with_token(&["explain", "/a", "--node", &url, "-H", "nonsense"]);
    assert_eq!(output.status.code(), Some(1));

    // Turned away or not reached: 2, in one line.
    let nobody = format!("http://{}", free_addresses(1)[0]);
    for (arguments, expected) in [(["stats", &url], "token"), (["stats", &nobody], "not reached")] {
        let output = run(&folder, &arguments);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(expected) && said(&output).lines().count() == 1, "{}", said(&output));
    }
    let token = folder.join("token");
    std::fs::write(&token, "reading-token-12\n").expect("writing a token");
    let output = run(&folder, &["stats", &url, "--token-file", "token"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demo_starts_a_fleet_and_stops_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut demo = command(folder.path(), &["demo", "--nodes", "2"])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program can be executed");
    let mut lines = BufReader::new(demo.stdout.take().expect("standard output"));
    let mut shown = String::new();
    while !shown.contains("Ctrl-C stops all") {
        assert!(lines.read_line(&mut shown).expect("reading") > 0, "{shown}");
    }
    let nodes: Vec<std::net::SocketAddr> = shown
        .lines()
        .filter(|line| line.trim_start().starts_with("node "))
        .filter_map(|line| line.split("http://").nth(1)?.split('/').next()?.parse().ok())
        .collect();
    assert_eq!(nodes.len(), 2, "{shown}");
    for address in &nodes {
        assert_eq!(client::get(*address, "/thumbnails/dawn.png").await.status(), 200);
    }
    signal(demo.id(), "INT");
    while lines.read_line(&mut shown).expect("reading") > 0 {}
    assert_eq!(demo.wait().expect("its end").code(), Some(0));
    assert_eq!(shown.matches("origin: question").count(), 1, "the origin is asked once: {shown}");
    for address in nodes {
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "a node outlives the demo");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "something is left behind");
}

#[test]
fn a_node_without_permission_or_address_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = run(folder.path(), &["run", "--origin", ".", "--listen", "192.0.2.1:1"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("no address of this machine"), "{}", said(&output));
}
