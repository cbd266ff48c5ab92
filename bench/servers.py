"""FastDrop and its peers: how each one's server is started, and its client called.

Every server serves the same folder on a port of this benchmark's own, with a configuration made
for it in a temporary folder, and with the options that its makers recommend for speed. A method
that returns a command is named for the client.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time

from processes import BenchError, Tree, end_with_parent, read_text
from programs import SEARCH

START_SECONDS = 20


class Server:
    """A server in the calling thread's network namespace, from its construction until `stop`.

    root    what it serves
    folder  for its configuration and output; nothing else is in there
    addr    where it listens
    """

    # Another user than the benchmark's.
    user = None

    def __init__(self, root, folder, env, addr="127.0.0.1"):
        self.root, self.folder, self.addr = root, folder, addr
        self.port = free_port(addr)
        os.makedirs(folder)
        self.argv = self.configure()
        self._log = os.path.join(folder, "log")
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                self.argv,
                env=dict(env, PATH=SEARCH),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **identity(self.user),
                # Ctrl-C is for the benchmark, which then stops its servers.
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.tree = Tree(self._process.pid)
        try:
            self._wait_listening()
        except BaseException:
            self.stop()
            raise

    def configure(self):
        """Writes what the server needs and returns its command."""
        raise NotImplementedError

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def log(self):
        """The end of what the server said."""
        return read_text(self._log)[-2000:].strip()

    def stop(self):
        """Ends the server, and its descendants with it."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        # The group is ours: the server was started as its leader.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait_listening(self):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            if self._listens():
                return
            time.sleep(0.01)
        raise BenchError(f"{type(self).__name__} does not listen:\n{self.log()}")

    def _listens(self):
        # Looking is better than connecting, for which some servers would start a child.
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError), open(f"/proc/{self._process.pid}/net/{table}") as lines:
                # The second column is the local address, the fourth the state; 0A is LISTEN.
                for local, state in (line.split()[1:4:2] for line in lines):
                    if state == "0A" and local.endswith(f":{self.port:04X}"):
                        return True
        return False


class FastDrop(Server):
    binary = None

    def configure(self):
        return [self.binary, "serve", self.root, "--bind", self.addr, "--port", str(self.port), "--json", *self.options()]

    def options(self):
        return []

    def send(self, source, folder, *options):
        return [self.binary, "send", *QUIET, *options, source, f"{self.addr}:{self.port}/{folder}"]

    def get(self, path, folder, *options):
        return [self.binary, "get", *QUIET, *options, f"{self.addr}:{self.port}/{path}", folder]


QUIET = ["--json", "--progress", "none"]


class FastDropOlder(FastDrop):
    """The same with FastDownloader on a port of its own."""

    def options(self):
        self.download_port = free_port(self.addr)
        return [f"--fastdownloader={self.download_port}"]

    def download(self, name, folder):
        target = f"{self.addr}:{self.download_port}/{name}"
        return [self.binary, "get", *QUIET, "--protocol", "fastdownloader", target, folder]


class Nginx(Server):
    def configure(self):
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        config = self.write(
            "nginx.conf",
            f"""{user} worker_processes auto; daemon off; pid {self.folder}/pid;
            events {{ worker_connections 4096; }}
            http {{
                {temporary} access_log off; default_type application/octet-stream;
                sendfile on; tcp_nodelay on; tcp_nopush on; keepalive_requests 1000000;
                server {{ listen {self.addr}:{self.port}; root {self.root}; autoindex on; }}
            }}
            """,
        )
        return ["nginx", "-p", self.folder, "-c", config, "-e", "stderr"]

    @property
    def url(self):
        return f"http://{self.addr}:{self.port}"

    def curl(self, path, target):
        return ["curl", "-s", "--fail", "-o", target, f"{self.url}/{path}"]

    def curl_tree(self, path, target, parallel):
        """Curl does not walk folders, so it gets a list, made outside of the measured time."""
        lines = []
        source = os.path.join(self.root, path)
        for folder, _, names in os.walk(source):
            for name in names:
                inner = os.path.relpath(os.path.join(folder, name), source)
                lines.append(f'url = "{self.url}/{path}/{inner}"\noutput = "{target}/{inner}"\n')
        urls = self.write(f"urls-{path.replace('/', '-')}", "".join(lines))
        options = ["--parallel", "--parallel-immediate", "--parallel-max", str(parallel), "--create-dirs"]
        return ["curl", "-s", "--fail", *options, "-K", urls]

    def rclone(self, path, target, streams):
        options = ["--multi-thread-streams", str(streams), "--multi-thread-cutoff", "1M"]
        return ["rclone", "copyto", "-q", *options, "--http-url", self.url, f":http:{path}", target]

    def rclone_tree(self, path, target, transfers):
        return ["rclone", "copy", "-q", "--transfers", str(transfers), "--http-url", self.url, f":http:{path}", target]

    def aria2(self, path, target, streams):
        options = [f"-x{streams}", f"-s{streams}", "-k1M", "--file-allocation=none"]
        folder, name = os.path.split(target)
        return ["aria2c", "--no-conf", "-q", *options, "-d", folder, "-o", name, f"{self.url}/{path}"]


class Rsync(Server):
    def configure(self):
        identity = "uid = 0\ngid = 0" if os.geteuid() == 0 else ""
        config = self.write(
            "rsyncd.conf",
            f"pid file = {self.folder}/pid\nuse chroot = no\n{identity}\n[root]\npath = {self.root}\nread only = no\n",
        )
        return ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={self.port}", f"--address={self.addr}"]

    def push(self, source, folder, *options):
        return ["rsync", "-W", "--inplace", *options, source, f"{self._url}/{folder}/"]

    def pull(self, path, folder, *options):
        return ["rsync", "-W", "--inplace", *options, f"{self._url}/{path}", f"{folder}/"]

    @property
    def _url(self):
        return f"rsync://{self.addr}:{self.port}/root"


class GridFtp(Server):
    def configure(self):
        as_root = ["-anonymous-user", "root", "-allow-root"] if os.geteuid() == 0 else []
        return ["globus-gridftp-server", "-aa", *as_root, "-p", str(self.port), "-control-interface", self.addr]

    def put(self, source, target, *options):
        return ["globus-url-copy", *options, f"file://{source}", f"{self._url}{target}"]

    def get(self, source, target, *options):
        return ["globus-url-copy", *options, f"{self._url}{source}", f"file://{target}"]

    @property
    def _url(self):
        return f"ftp://{self.addr}:{self.port}"


class Sshd(Server):
    CIPHER = "aes128-gcm@openssh.com"

    def configure(self):
        for name in ("host", "user"):
            key = os.path.join(self.folder, name)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], env={"PATH": SEARCH}, check=True)
        if os.geteuid() == 0:
            # The system makes it when it starts its own sshd.
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        config = self.write(
            "sshd_config",
            f"""ListenAddress {self.addr}:{self.port}
            HostKey {self.folder}/host
            AuthorizedKeysFile {self.folder}/user.pub
            PidFile none
            StrictModes no
            UsePAM no
            PasswordAuthentication no
            PermitRootLogin prohibit-password
            Subsystem sftp internal-sftp
            Ciphers {self.CIPHER}
            """,
        )
        # It starts itself anew for each connection, for which it wants its full path.
        return [shutil.which("sshd", path=SEARCH), "-D", "-e", "-f", config]

    def scp(self, source, target, *options):
        settings = ["IdentitiesOnly=yes", "IdentityAgent=none", "UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no"]
        settings += ["LogLevel=ERROR", "Compression=no", f"Ciphers={self.CIPHER}"]
        settings = [word for setting in settings for word in ("-o", setting)]
        key = os.path.join(self.folder, "user")
        return ["scp", "-q", *options, "-F", "/dev/null", "-i", key, *settings, "-P", str(self.port), source, f"{self.addr}:{target}"]


class Xrootd(Server):
    # It refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None

    def configure(self):
        if self.user:
            shutil.chown(self.folder, self.user)
        config = self.write(
            "xrootd.cfg",
            f"xrd.port {self.port}\nall.export {self.root}\nall.adminpath {self.folder}\nall.pidpath {self.folder}\nxrd.network nodnr\n",
        )
        return ["xrootd", "-c", config, "-l", os.path.join(self.folder, "xrootd.log")]

    def xrdcp(self, source, target, *options):
        return ["xrdcp", "-s", *options, f"root://{self.addr}:{self.port}/{source}", target]


def identity(user):
    """For `subprocess.Popen`: all that makes a process this user's."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def free_port(addr):
    with socket.socket() as probe:
        probe.bind((addr, 0))
        return probe.getsockname()[1]
