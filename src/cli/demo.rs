//! `demo`: a fleet on this machine, one process per node, in front of a sample origin.
//!
//! Every node is this same program with a configuration of its own. A node ends when its standard input ends, so that none
//! outlives the demo however that ends.

mod origin;

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::client::{NodeUrl, get};
use super::{Exit, Failure, print};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  groupcache-proxy demo\n  groupcache-proxy demo --nodes 5 --origin /var/www --port 9000\n\n\
                        Ctrl-C stops all."
)]
pub(super) struct Arguments {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    nodes: u16,
    /// Answer from this server or folder instead of the sample pictures
    #[arg(long, value_name = "URL|DIR")]
    origin: Option<String>,
    /// Port of the first node; the others follow [default: 8080, or free ones]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let ports = choose_ports(arguments.nodes, arguments.port)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::unable(format!("no runtime: {error}")))?;
    let source = match &arguments.origin {
        Some(origin) => Source::of(origin)?,
        None => {
            let address =
                runtime.block_on(origin::start()).map_err(|error| Failure::unable(format!("no origin: {error}")))?;
            Source { group: "thumbnails", path: "/thumbnails/", key: "origin", value: format!("http://{address}/") }
        }
    };
    let urls: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    let folder = Folder::new().map_err(|error| Failure::unable(format!("no folder for configurations: {error}")))?;
    let mut nodes = Nodes(Vec::new());
    for (number, url) in urls.iter().enumerate() {
        let path = folder.0.join(format!("node{}.yaml", number + 1));
        std::fs::write(&path, configuration(&source, url, &urls))
            .map_err(|error| Failure::unable(format!("{}: {error}", path.display())))?;
        nodes.0.push(start(&path).map_err(|error| Failure::unable(format!("node {}: {error}", number + 1)))?);
    }
    // From here on the signals are ours: whatever comes, the nodes are stopped first.
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = signal(SignalKind::interrupt())
            .and_then(|interrupt| Ok((interrupt, signal(SignalKind::terminate())?)))
            .map_err(|error| Failure::unable(format!("signals: {error}")))?;
        let told = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        tokio::select! {
            () = told => Ok(()),
            failed = watch_over(&mut nodes, &urls, &source) => failed,
        }
    })?;
    print("\nstopping\n")?;
    nodes.stop();
    Ok(Exit::Done)
}

/// Waits until all nodes are ready, says what to try, and returns when one of them ends.
async fn watch_over(nodes: &mut Nodes, urls: &[String], source: &Source) -> Result<(), Failure> {
    for (number, url) in urls.iter().enumerate() {
        let deadline = Instant::now() + READY_TIMEOUT;
        let node = NodeUrl::parse(url)?;
        loop {
            nodes.check()?;
            let node = node.clone();
            let asked = tokio::task::spawn_blocking(move || get(&node, "/_groupcache/ready", None)).await;
            if asked.is_ok_and(|reply| reply.is_ok_and(|reply| reply.status == 200)) {
                break;
            }
            if Instant::now() > deadline {
                return Err(Failure::unable(format!("node {} does not become ready", number + 1)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    print(&what_to_try(urls, source))?;
    loop {
        nodes.check()?;
        tokio::time::sleep(PAUSE).await;
    }
}

fn what_to_try(urls: &[String], source: &Source) -> String {
    let picture = if source.group == "thumbnails" { "dawn.png" } else { "" };
    let (first, last) = (&urls[0], &urls[urls.len() - 1]);
    let target = format!("{}{picture}", source.path);
    let mut text = format!("{} in front of {}\n\n", plural(urls.len(), "node"), source.value);
    for (number, url) in urls.iter().enumerate() {
        text.push_str(&format!("  node {}   {url}{}\n", number + 1, source.path));
    }
    text.push_str(&format!(
        "\ntry:\n  curl -sD - -o /dev/null {first}{target}     the owner asks the origin\n  \
         curl -sD - -o /dev/null {last}{target}     another node: the origin is not asked again\n  \
         groupcache-proxy stats {first}\n\nCtrl-C stops all.\n"
    ));
    text
}

fn plural(number: usize, what: &str) -> String {
    if number == 1 { format!("one {what}") } else { format!("{number} {what}s") }
}

/// What the fleet answers from.
struct Source {
    group: &'static str,
    path: &'static str,
    key: &'static str,
    value: String,
}

impl Source {
    fn of(origin: &str) -> Result<Self, Failure> {
        if origin.contains("://") {
            return Ok(Source { group: "demo", path: "/", key: "origin", value: origin.to_owned() });
        }
        // The nodes' configurations lie elsewhere, so a relative path would mean another folder.
        let folder = std::fs::canonicalize(origin)
            .map_err(|error| Failure::bad(format!("--origin {origin}: {error}, expected a URL or a folder")))?;
        Ok(Source { group: "demo", path: "/", key: "directory", value: folder.display().to_string() })
    }
}

fn configuration(source: &Source, url: &str, urls: &[String]) -> String {
    let address = url.trim_start_matches("http://");
    let value = serde_json::Value::from(source.value.as_str());
    let peers = serde_json::Value::from(urls);
    format!(
        "listen: [{{ address: '{address}' }}]\n\
         memory: 64MiB\n\
         threads: 1\n\
         log: {{ level: warn, access: none }}\n\
         shutdown: {{ delay: 0s, timeout: 5s }}\n\
         fleet: {{ self: '{url}', peers: {peers} }}\n\
         groups:\n  - name: {}\n    match: {{ path: {} }}\n    {}: {value}\n    freshness: {{ default: 60s }}\n",
        source.group, source.path, source.key,
    )
}

fn start(config: &Path) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["run", "--until-input-ends", "--config"])
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
}

/// The nodes' processes.
struct Nodes(Vec<Child>);

impl Nodes {
    /// Fails when one has ended, which none does by itself.
    fn check(&mut self) -> Result<(), Failure> {
        for (number, child) in self.0.iter_mut().enumerate() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Failure::unable(format!("node {} ended ({status}); its last words are above", number + 1)));
            }
        }
        Ok(())
    }

    /// Lets all end in peace, then not.
    fn stop(&mut self) {
        for child in &mut self.0 {
            drop(child.stdin.take());
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        for child in &mut self.0 {
            while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(PAUSE);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        self.0.clear();
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A folder that goes when the demo ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("groupcache-proxy-demo-{}", std::process::id()));
        // Fails when somebody has put something there: then it is not ours.
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ports for the nodes. They are free now and bound a moment later by the nodes, so another program may come between: the
/// node then says that its address is in use, and the demo ends.
fn choose_ports(nodes: u16, first: Option<u16>) -> Result<Vec<u16>, Failure> {
    let range = |first: u16| first..first.saturating_add(nodes);
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port));
    if let Some(first) = first {
        if first.checked_add(nodes - 1).is_none() {
            return Err(Failure::bad(format!("--port {first} leaves no room for {nodes} nodes")));
        }
        for port in range(first) {
            free(port).map_err(|error| {
                Failure::unable(format!("port {port} cannot be used ({error}); choose others with --port"))
            })?;
        }
        return Ok(range(first).collect());
    }
    if range(DEFAULT_PORT).all(|port| free(port).is_ok()) {
        return Ok(range(DEFAULT_PORT).collect());
    }
    // Held together, so that all differ.
    let held: io::Result<Vec<TcpListener>> = (0..nodes).map(|_| free(0)).collect();
    let ports: io::Result<Vec<u16>> =
        held.and_then(|held| held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect());
    ports.map_err(|error| Failure::unable(format!("no free ports: {error}")))
}

const DEFAULT_PORT: u16 = 8080;
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SystemEnvironment};

    #[test]
    fn a_nodes_configuration_has_no_mistake() {
        let urls: Vec<String> = (1..=3).map(|port| format!("http://127.0.0.1:{port}")).collect();
        let folder = tempfile::tempdir().unwrap();
        for source in [
            Source { group: "thumbnails", path: "/thumbnails/", key: "origin", value: "http://127.0.0.1:9/".into() },
            Source::of(&folder.path().display().to_string()).unwrap(),
        ] {
            let text = configuration(&source, &urls[1], &urls);
            let loaded = Config::parse(&text, "demo", Path::new(""), &SystemEnvironment::default());
            let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
            assert_eq!(loaded.config.fleet.unwrap().peers.len(), 3);
        }
    }

    #[test]
    fn ports_differ_and_a_taken_one_is_said() {
        let ports = choose_ports(5, None).unwrap();
        assert_eq!(ports.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let failure = choose_ports(1, Some(taken.local_addr().unwrap().port())).unwrap_err();
        assert_eq!(failure.exit, Exit::Unable);
        assert_eq!(choose_ports(3, Some(65_534)).unwrap_err().exit, Exit::Bad);
    }
}
