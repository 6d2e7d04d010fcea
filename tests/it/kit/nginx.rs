//! Debian's nginx as a real origin: files of a temporary folder, `ETag`, ranges, `gzip` with `Vary`, and on request TLS with
//! HTTP/2. One process without workers, so that killing it by its id ends all of it; it ends when the [`Nginx`] is dropped.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running nginx.
pub struct Nginx {
    child: Child,
    folder: TempDir,
    plain: SocketAddr,
    tls: SocketAddr,
}

impl Nginx {
    /// Starts one with an empty folder of files, or says that there is none on this machine: `None`, and a line on standard
    /// error so that a skipped test does not pass for a good one. Where `REQUIRE_NGINX` is set that is a failure.
    pub fn start() -> Option<Nginx> {
        let Some(program) = program() else {
            assert!(std::env::var_os("REQUIRE_NGINX").is_none(), "nginx is required and not installed");
            eprintln!("skipped: nginx is not installed (apt-get install nginx-light)");
            return None;
        };
        // Between choosing a free port and nginx binding it somebody else may take it: then choose again.
        for _ in 0..5 {
            if let Some(nginx) = Nginx::try_start(&program) {
                return Some(nginx);
            }
        }
        panic!("nginx does not start: see its messages above");
    }

    fn try_start(program: &Path) -> Option<Nginx> {
        let folder = TempDir::new().expect("a temporary folder");
        let root = folder.path().join("files");
        std::fs::create_dir(&root).expect("a folder for the files");
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
            .expect("a certificate for loopback");
        std::fs::write(folder.path().join("cert.pem"), certified.cert.pem()).expect("writing the certificate");
        std::fs::write(folder.path().join("key.pem"), certified.signing_key.serialize_pem()).expect("writing the key");
        let (plain, tls) = free_addresses();
        let configuration = configuration(folder.path(), plain, tls);
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, configuration).expect("writing the configuration");
        let child = Command::new(program)
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg("stderr")
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx can be executed");
        let mut nginx = Nginx { child, folder, plain, tls };
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if nginx.child.try_wait().expect("the state of nginx").is_some() {
                return None;
            }
            if TcpStream::connect(nginx.plain).is_ok() {
                return Some(nginx);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.plain)
    }

    /// `https://127.0.0.1:PORT`, with HTTP/2.
    pub fn tls_url(&self) -> String {
        format!("https://{}", self.tls)
    }

    /// The certificate that vouches for [`Nginx::tls_url`].
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// Writes a file below the document root.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.folder.path().join("files").join(name), content).expect("writing a file");
    }

    /// Deletes a file below the document root.
    pub fn delete(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join("files").join(name)).expect("deleting a file");
    }

    /// Requests so far, one `METHOD TARGET PROTOCOL STATUS CONNECTION` each.
    pub fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    // Debian puts it where only root's PATH leads.
    let places = std::env::split_paths(&folders).chain([PathBuf::from("/usr/sbin")]);
    places.map(|folder| folder.join("nginx")).find(|candidate| candidate.is_file())
}

/// Two ports that were free just now.
fn free_addresses() -> (SocketAddr, SocketAddr) {
    let listeners = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).expect("a free port on loopback"));
    let [plain, tls] = listeners.map(|listener| listener.local_addr().expect("the listener's address"));
    (plain, tls)
}

fn configuration(folder: &Path, plain: SocketAddr, tls: SocketAddr) -> String {
    let folder_name = folder.display();
    // As root nginx would read files as another user, who cannot enter the temporary folder.
    let root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let user = if root { "user root;" } else { "" };
    format!(
        "{user} daemon off; master_process off; pid {folder_name}/pid; error_log stderr warn;
events {{ worker_connections 512; }}
http {{
  log_format short '$request_method $request_uri $server_protocol $status $connection';
  access_log {folder_name}/access.log short;
  client_body_temp_path {folder_name}/body; proxy_temp_path {folder_name}/proxy; fastcgi_temp_path {folder_name}/fastcgi;
  uwsgi_temp_path {folder_name}/uwsgi; scgi_temp_path {folder_name}/scgi;
  types {{ text/html html; text/css css; image/jpeg jpg; text/plain txt; }}
  gzip on; gzip_vary on; gzip_min_length 20; gzip_proxied any; gzip_types text/css text/plain;
  server {{
    listen {plain}; listen {tls} ssl http2;
    ssl_certificate {folder_name}/cert.pem; ssl_certificate_key {folder_name}/key.pem;
    root {folder_name}/files;
  }}
}}
"
    )
}
