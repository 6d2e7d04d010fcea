"""The programs that are compared: how each is configured, started on one core, and ended.

Every contestant answers the paths of the small origin (`Origin`): `/{bytes}/{anything}` is an object of that many bytes.
All of them listen on loopback ports that were free a moment ago, keep their files in one temporary folder in memory, and
run with one worker thread where they can be told so.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find_program(name):
    """Debian keeps servers where an ordinary user's PATH does not lead."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Missing(Exception):
    """A contestant cannot take part; the text says why."""


class Contestant:
    """One server. A subclass writes its configuration in `command` and names what it cannot do."""

    name = ""
    program = ""
    package = ""
    tls = False
    #: Cases that make no sense for this server, by name.
    cannot = ()

    def __init__(self, setting, label=None):
        self.setting = setting
        self.label = label or self.name
        self.folder = setting.folder / self.label.replace(" ", "-").replace("/", "-").replace(",", "")
        self.port = free_port()
        self.tls_port = free_port() if self.tls else None
        self.process = None

    def command(self):
        """Writes the configuration and returns the command line."""
        raise NotImplementedError

    def start(self):
        program = find_program(self.program)
        if program is None:
            raise Missing(f"{self.program} is not installed (package {self.package})")
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "output.txt", "wb") as output:
            self.process = subprocess.Popen(
                ["taskset", "-c", str(self.setting.server_core), *self.command()],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=self.environment(),
                # A group of its own, so that workers end with it.
                start_new_session=True,
            )
        self.wait_until_it_answers()

    def environment(self):
        return dict(os.environ)

    def probe(self):
        return self.path("/100/probe")

    def path(self, path):
        """How this server is asked for an object of the origin."""
        return path

    def url(self, path, tls=False):
        scheme, port = ("https", self.tls_port) if tls else ("http", self.port)
        return f"{scheme}://127.0.0.1:{port}{self.path(path)}"

    def wait_until_it_answers(self):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Missing(f"{self.label} ended at once: {self.last_words()}")
            try:
                if fetch(self.port, self.probe()).status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        self.stop()
        raise Missing(f"{self.label} does not answer: {self.last_words()}")

    def last_words(self):
        text = (self.folder / "output.txt").read_text(errors="replace").strip()
        return text.splitlines()[-1][:300] if text else "it said nothing"

    def processes(self):
        """The pids of the server and all its descendants."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            waiting.extend(parents.get(pid, []))
        return found

    def cpu_seconds(self):
        """User and system time of the server so far."""
        user = system = 0
        for pid in self.processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            user, system = user + int(fields[11]), system + int(fields[12])
        ticks = os.sysconf("SC_CLK_TCK")
        return user / ticks, system / ticks

    def resident_bytes(self):
        """What the server holds of memory, pages shared between its processes counted once."""
        total = 0
        for pid in self.processes():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return total * 1024

    def stop(self):
        if self.process is None:
            return
        # Varnish's worker has a process group of its own.
        processes = self.processes() if self.process.poll() is None else []
        self.process.stdin.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in processes[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process = None


def fetch(port, path, fields=()):
    """One request; the answer with its body in `content`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=dict(fields))
        answer = connection.getresponse()
        try:
            answer.content = answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        return answer
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()


class Nginx(Contestant):
    """What the configurations of nginx have in common."""

    program = "nginx"
    package = "nginx-light"

    def configuration(self):
        raise NotImplementedError

    def command(self):
        text = f"""
daemon off; master_process on; worker_processes 1; pid {self.folder}/pid; error_log stderr error;
worker_rlimit_nofile 20000;
events {{ worker_connections 10000; }}
http {{
    access_log off; sendfile on; tcp_nopush on; server_tokens off; default_type application/octet-stream;
    keepalive_timeout 120s; keepalive_requests 1000000000; open_file_cache max=10000 inactive=1h;
    client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy; fastcgi_temp_path {self.folder}/fastcgi;
    uwsgi_temp_path {self.folder}/uwsgi; scgi_temp_path {self.folder}/scgi;
    {self.configuration()}
}}
"""
        if os.geteuid() == 0:
            text = "user root;" + text
        (self.folder / "nginx.conf").write_text(text)
        return [find_program(self.program), "-e", "stderr", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]


class Origin(Nginx):
    """Files by size, and a count of the requests that arrived. It shares the load generator's core."""

    name = "origin"

    def __init__(self, setting):
        super().__init__(setting)
        self.files = self.folder / "files"

    def start(self):
        self.files.mkdir(parents=True, exist_ok=True)
        for size in self.setting.sizes:
            (self.files / str(size)).write_bytes(os.urandom(size))
        server_core, self.setting.server_core = self.setting.server_core, self.setting.load_core
        try:
            super().start()
        finally:
            self.setting.server_core = server_core

    def configuration(self):
        return f"""
    server {{
        listen 127.0.0.1:{self.port} backlog=4096; root {self.files};
        location = /status {{ stub_status; }}
        location / {{ rewrite ^/(\\d+)/ /$1 break; add_header Cache-Control "public, max-age=86400"; }}
    }}"""

    def requests(self):
        """How many requests have arrived since the start."""
        return int(fetch(self.port, "/status").content.split()[9])


class NginxReturn(Nginx):
    name = "nginx return 200"
    cannot = ("hit-100b", "hit-64k", "hit-1m", "304", "range", "tls-h1", "tls-h2", "miss", "hop", "miss-hop")

    def configuration(self):
        return f'server {{ listen 127.0.0.1:{self.port} backlog=4096; location / {{ return 200 "hello"; }} }}'


class NginxCache(Nginx):
    name = "nginx"
    tls = True

    def configuration(self):
        certificate, key = self.setting.certificate
        return f"""
    proxy_cache_path {self.folder}/cache levels=1:2 keys_zone=cache:512m max_size={self.setting.cache_bytes} inactive=1d use_temp_path=off;
    upstream origin {{ server 127.0.0.1:{self.setting.origin.port}; keepalive 128; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{self.port} backlog=4096; listen 127.0.0.1:{self.tls_port} ssl http2 backlog=4096;
        http2_max_concurrent_streams 128; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {certificate}; ssl_certificate_key {key};
        location / {{
            proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_cache cache; proxy_cache_valid 200 1d; proxy_cache_lock on;
        }}
    }}"""


class HAProxy(Contestant):
    name = "HAProxy"
    program = "haproxy"
    package = "haproxy"
    tls = True

    def command(self):
        pair = self.folder / "pair.pem"
        pair.write_bytes(b"".join(Path(part).read_bytes() for part in self.setting.certificate))
        megabytes = min(4095, self.setting.cache_bytes >> 20)
        (self.folder / "haproxy.cfg").write_text(f"""
global
    nbthread 1
    maxconn 9500
defaults
    mode http
    timeout connect 5s
    timeout client 120s
    timeout server 60s
cache objects
    total-max-size {megabytes}
    max-object-size {min(2 << 20, (megabytes << 20) // 2)}
    max-age 86400
frontend clients
    bind 127.0.0.1:{self.port}
    bind 127.0.0.1:{self.tls_port} ssl crt {pair} alpn h2,http/1.1
    http-request cache-use objects
    http-response cache-store objects
    default_backend origin
backend origin
    server origin 127.0.0.1:{self.setting.origin.port}
""")
        return [find_program(self.program), "-db", "-f", str(self.folder / "haproxy.cfg")]


class Varnish(Contestant):
    name = "Varnish"
    program = "varnishd"
    package = "varnish"

    def command(self):
        return [
            find_program(self.program), "-F", "-j", "none", "-n", str(self.folder / "varnish"),
            "-a", f"127.0.0.1:{self.port}", "-b", f"127.0.0.1:{self.setting.origin.port}",
            "-s", f"malloc,{self.setting.cache_bytes}", "-p", "thread_pools=1", "-p", "timeout_idle=120",
        ]


class TrafficServer(Contestant):
    name = "Traffic Server"
    program = "traffic_server"
    package = "trafficserver"

    def command(self):
        configuration = self.folder / "etc"
        if not Path("/etc/trafficserver").is_dir():
            raise Missing("there is no /etc/trafficserver to start from")
        shutil.copytree("/etc/trafficserver", configuration, dirs_exist_ok=True)
        places = {
            "prefix": "/usr", "exec_prefix": "/usr", "bindir": "/usr/bin", "sbindir": "/usr/sbin", "libdir": "/usr/lib/trafficserver",
            "libexecdir": "/usr/lib/trafficserver/modules", "includedir": "/usr/include", "sysconfdir": configuration,
        }
        for name in ("datadir", "localstatedir", "runtimedir", "logdir", "cachedir"):
            places[name] = self.folder / name
            places[name].mkdir(exist_ok=True)
        root = self.folder / "runroot.yaml"
        root.write_text("".join(f"{name}: {place}\n" for name, place in places.items()))
        cache = self.folder / "cache"
        cache.mkdir(exist_ok=True)
        storage = max(256 << 20, min(self.setting.cache_bytes, 2 << 30))
        settings = {
            "exec_thread.autoconfig INT": 0, "exec_thread.limit INT": 1, "accept_threads INT": 0, "task_threads INT": 1,
            "cache.threads_per_disk INT": 1, "cache.ram_cache.size INT": self.setting.cache_bytes,
            "http.server_ports STRING": f"{self.port}:ip-in=127.0.0.1", "log.logging_enabled INT": 0,
            "http.keep_alive_no_activity_timeout_in INT": 120, "admin.user_id STRING": "#-1",
            "net.connections_throttle INT": 15000, "http.cache.required_headers INT": 0,
        }
        lines = [f"CONFIG proxy.config.{name} {value}" for name, value in settings.items()]
        (configuration / "records.config").write_text("\n".join(lines) + "\n")
        (configuration / "storage.config").write_text(f"{cache} {storage}\n")
        (configuration / "remap.config").write_text(f"map / http://127.0.0.1:{self.setting.origin.port}/\n")
        return [find_program(self.program), f"--run-root={root}"]


class GoGroupcache(Contestant):
    """A program that answers through golang/groupcache; `peers` are the nodes that may own keys."""

    name = "Go groupcache"
    program = "go"
    package = "golang-go golang-github-golang-groupcache-dev"
    cannot = ("304", "range", "tls-h1", "tls-h2", "miss")

    def __init__(self, setting, label=None, peers=None, cache_bytes=None):
        super().__init__(setting, label)
        self.peers, self.cache_bytes = peers, cache_bytes

    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def path(self, path):
        return "/get?key=" + path.lstrip("/").replace("?", "%3F")

    def environment(self):
        return {**os.environ, "GOMAXPROCS": "1"}

    def command(self):
        binary = self.setting.folder / "go_peer"
        if not binary.exists():
            building = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
            building["GOCACHE"] = str(self.setting.folder / "go-build")
            built = subprocess.run(
                [find_program("go"), "build", "-o", str(binary), "main.go"],
                cwd=PROJECT / "tests" / "go_peer", env=building, capture_output=True,
            )
            if built.returncode != 0:
                raise Missing(f"go build: {built.stderr.decode(errors='replace').strip()[:200]}")
        cache_bytes = self.setting.cache_bytes if self.cache_bytes is None else self.cache_bytes
        return [
            str(binary), "-self", self.address(), "-origin", f"http://127.0.0.1:{self.setting.origin.port}",
            "-peers", ",".join(self.peers or [self.address()]), "-cache-bytes", str(cache_bytes),
        ]


class Ours(Contestant):
    """This project; `peers` are the nodes that may own keys, itself not necessarily among them, or `owner=True` itself alone."""

    name = "groupcache-proxy"
    tls = True

    def __init__(self, setting, label=None, peers=None, max_object="32MiB", memory=None, owner=False, threads=1):
        super().__init__(setting, label)
        self.threads = threads
        self.program = str(setting.binary)
        self.package = "cargo build --release"
        self.admin_port = free_port()
        self.peers, self.max_object, self.memory = [self.address()] if owner else peers, max_object, memory

    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def command(self):
        certificate, key = self.setting.certificate
        fleet = ""
        if self.peers:
            fleet = f"fleet: {{ self: {self.address()}, peers: [{', '.join(self.peers)}] }}\n"
        (self.folder / "proxy.yaml").write_text(f"""
listen:
  - address: 127.0.0.1:{self.port}
  - address: 127.0.0.1:{self.tls_port}
    tls: {{ cert: {certificate}, key: {key} }}
admin: {{ address: 127.0.0.1:{self.admin_port} }}
memory: {self.memory or self.setting.cache_bytes}
threads: {self.threads}
shutdown: {{ delay: 0s, timeout: 1s }}
log: {{ level: warn, access: none }}
{fleet}groups:
  - name: bench
    match: {{ path: / }}
    origin: http://127.0.0.1:{self.setting.origin.port}
    max_object: {self.max_object}
""")
        return [self.program, "run", "--config", str(self.folder / "proxy.yaml")]


def check_packages(contestants, say):
    """Installs the packages of what is missing, as root; otherwise says what to install."""
    missing = sorted({each.package for each in contestants if each.package and not find_program(each.program)})
    missing += [package for program, package in (("wrk", "wrk"), ("h2load", "nghttp2-client"), ("openssl", "openssl")) if not find_program(program)]
    if not missing:
        return
    packages = " ".join(missing).split()
    if os.geteuid() != 0 or not find_program("apt-get"):
        say(f"missing, and not installed because this is not root on Debian: {' '.join(packages)}")
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]):
        with without_service_starts():
            if subprocess.run(command, env=quiet, stdout=subprocess.DEVNULL).returncode != 0:
                say(f"could not run: {' '.join(command)}")


class without_service_starts:
    """Debian starts the services of a package that is installed; this says no for the moment."""

    policy = Path("/usr/sbin/policy-rc.d")

    def __enter__(self):
        self.made = not self.policy.exists()
        if self.made:
            self.policy.write_text("#!/bin/sh\nexit 101\n")
            self.policy.chmod(0o755)

    def __exit__(self, *_):
        if self.made:
            self.policy.unlink(missing_ok=True)


if sys.version_info < (3, 9):
    sys.exit("Python 3.9 or newer is needed")
