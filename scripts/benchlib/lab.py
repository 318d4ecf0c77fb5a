"""Hosts as network namespaces on one bridge, and the processes that run in them."""

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

PREFIX = "flanneld-bench"
NETWORK = "172.7.0.0/16"
FIRST_HOST = 21

# As with a plain network card: the kernel cuts before the link and merges behind it.
WIRE = "tso off tx-udp-segmentation off tx-udp_tnl-segmentation off gro on".split()
MODELS = ("whole", "wire")

POD_SCRIPT = Path(__file__).parents[1] / "pod.sh"


class Failure(Exception):
    """A measurement or a system that did not work; the text says why, in one line."""


def run(*command, stdin=None):
    """Runs a short command to its end; returns what it printed."""
    command = [str(word) for word in command]
    words = " ".join(command)
    try:
        done = subprocess.run(command, input=stdin or "", text=True, capture_output=True,
                              timeout=60, start_new_session=True)
    except subprocess.TimeoutExpired:
        raise Failure(f"{words}: not done after 60 s") from None
    except OSError as error:
        raise Failure(f"{words}: {error}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Failure(f"{words}: {said[-1] if said else f'exit {done.returncode}'}")
    return done.stdout


def inside(netns, *command):
    return ("ip", "netns", "exec", netns, *command)


@dataclass
class Host:
    """10.4.7.N on eth0 of a namespace of its own; 172.7.N.0/24 is for its pods."""

    number: int
    netns: str
    dir: Path
    pod_address: str = ""

    @property
    def address(self):
        return f"10.4.7.{self.number}"

    @property
    def overlay(self):
        return f"172.7.{self.number}.0"

    @property
    def subnet(self):
        return f"{self.overlay}/24"

    @property
    def pod_netns(self):
        return f"{self.netns}-pod"

    @property
    def subnet_file(self):
        return self.dir / "subnet.env"

    def write_subnet_env(self, mtu):
        self.subnet_file.write_text(
            f"FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET=172.7.{self.number}.1/24\n"
            f"FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n")


class Lab:
    """All namespaces, processes and files of one run; what it made is gone when it closes."""

    def __init__(self):
        remove_namespaces()
        self.dir = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
        self.worlds = 0
        self.processes = []

    def clear(self):
        """Ends everything that runs and removes all hosts."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.processes.clear()
        remove_namespaces()

    def close(self):
        self.clear()
        shutil.rmtree(self.dir, ignore_errors=True)

    def spawn(self, netns, *command, log=None):
        """Starts a program in a namespace. Its output goes to the file `log`, else to pipes."""
        where = open(log, "ab") if log else None
        process = subprocess.Popen(
            [str(word) for word in inside(netns, *command)], stdin=subprocess.DEVNULL,
            stdout=where or subprocess.PIPE, stderr=where or subprocess.PIPE,
            # Ctrl-C shall reach this program alone, which then ends the others.
            text=not log, start_new_session=True,
        )
        if where:
            where.close()
        self.processes.append(process)
        return process

    def reap(self, process):
        """Forgets a process that ended, and ends it if it did not."""
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
        self.processes.remove(process)


class World:
    """Hosts on one bridge. Each system has a world of its own, so that nothing of one can reach
    another and none has to be restarted between rounds."""

    def __init__(self, lab, hosts, model, mtu=1500):
        self.lab, self.model = lab, model
        lab.worlds += 1
        self.name = f"{PREFIX}-{lab.worlds}"
        self.dir = lab.dir / str(lab.worlds)
        self.switch = f"{self.name}-switch"
        make_namespace(self.switch)
        batch(self.switch, "link add br0 type bridge", f"link set br0 mtu {mtu} up",
              "addr add 10.4.7.1/24 dev br0")
        self.hosts = [self._host(FIRST_HOST + index, mtu) for index in range(hosts)]

    def _host(self, number, mtu):
        host = Host(number, f"{self.name}-{number}", self.dir / str(number))
        host.dir.mkdir(parents=True)
        make_namespace(host.netns)
        port = f"h{number}"
        batch(host.netns,
              f"link add eth0 mtu {mtu} type veth peer name {port} mtu {mtu} netns {self.switch}",
              f"addr add {host.address}/24 dev eth0", "link set eth0 up")
        batch(self.switch, f"link set {port} master br0 up")
        if self.model == "wire":
            run(*inside(host.netns, "ethtool", "-K", "eth0", *WIRE))
            run(*inside(self.switch, "ethtool", "-K", port, *WIRE))
        return host

    def add_pods(self, plugin, mtu):
        """A pod on every host. Where no daemon wrote a subnet.env, it has this MTU."""
        for host in self.hosts:
            if not host.subnet_file.exists():
                host.write_subnet_env(mtu)
            make_namespace(host.pod_netns)
            host.pod_address = by_cni("ADD", plugin, host).strip()

    def delete_pods(self, plugin):
        for host in self.hosts:
            by_cni("DEL", plugin, host)


def by_cni(command, plugin, host):
    """Has the CNI plugin add or delete the host's pod, as a container runtime would."""
    return run(POD_SCRIPT, command, plugin, host.netns, host.pod_netns, host.dir)


def batch(netns, *lines):
    run("ip", "-n", netns, "-batch", "-", stdin="\n".join(lines) + "\n")


def make_namespace(name):
    run("ip", "netns", "add", name)
    batch(name, "link set lo up")
    run(*inside(name, "sysctl", "-qw", "net.ipv4.ip_forward=1",
                "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"))


def remove_namespaces():
    """Removes our namespaces and ends what runs in them: these and nothing else."""
    names = [line.split()[0] for line in run("ip", "netns", "list").splitlines()]
    for name in (name for name in names if name.startswith(f"{PREFIX}-")):
        for pid in run("ip", "netns", "pids", name).split():
            with contextlib.suppress(Failure):
                run("kill", "-9", pid)
        with contextlib.suppress(Failure):
            run("ip", "netns", "del", name)


class Traffic:
    """The traffic generator, examples/traffic."""

    def __init__(self, lab, binary):
        self.lab, self.binary = lab, binary

    def start(self, netns, *arguments):
        return self.lab.spawn(netns, self.binary, *arguments)

    @contextlib.contextmanager
    def listening(self, netns, *arguments):
        """A receiver whose socket is open; ended with the block at the latest."""
        process = self.start(netns, *arguments)
        try:
            if not process.stdout.readline():
                raise Failure(complaint(process, arguments[0]))
            yield process
        finally:
            self.lab.reap(process)

    @contextlib.contextmanager
    def running(self, netns, *arguments):
        """A sender, ended with the block at the latest."""
        process = self.start(netns, *arguments)
        try:
            yield process
        finally:
            self.lab.reap(process)

    def call(self, netns, *arguments, patience):
        """Runs a sender to its end; returns its report."""
        with self.running(netns, *arguments) as process:
            return report(process, arguments[0], patience)


def report(process, what, patience):
    """Waits for a generator's end and returns what it reports."""
    late = threading.Event()

    def give_up():
        late.set()
        process.kill()

    timer = threading.Timer(patience, give_up)
    timer.start()
    try:
        text = process.stdout.read()
        process.wait()
    finally:
        timer.cancel()
    if late.is_set():
        raise Failure(f"{what}: not done after {patience:.0f} s")
    if process.returncode != 0:
        raise Failure(complaint(process, what))
    return json.loads(text)


def complaint(process, what):
    process.wait()
    said = process.stderr.read().split("\n\n")[0].split("\n")
    return f"{what}: {' '.join(line.strip() for line in said) or f'exit {process.returncode}'}"


def stop_on_signals():
    """SIGTERM ends the run as Ctrl-C does: by an exception, so that everything is removed."""
    def stop(number, _frame):
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def ignore_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
