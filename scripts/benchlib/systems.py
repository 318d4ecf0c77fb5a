"""What is measured: each system sets itself up between the hosts of a world of its own."""

import json
import shutil
import time

from .lab import NETWORK, Failure, batch, inside, run

# Longer than a loaded machine takes for 64 daemons.
PATIENCE_S = 60


class System:
    """No overlay: the hosts' own addresses, and plain routes between the pods."""

    label = "no overlay"
    mtu = 1500

    def __init__(self, name):
        self.name = name
        self.processes = []
        self.world = None

    def start(self, world, plugin):
        """Sets everything up; returns when each host reaches the first one and back. With a CNI
        plugin each host gets a pod."""
        self.world = world
        self.set_up(world)
        if plugin:
            world.add_pods(plugin, self.mtu)
        first = world.hosts[0]
        for host in world.hosts[1:]:
            self._await_way(first.netns, self.address(host))
            if plugin:
                self._await_way(first.pod_netns, host.pod_address)

    def set_up(self, world):
        for host in world.hosts:
            batch(host.netns, *(f"route add {peer.subnet} via {peer.address}"
                                for peer in peers_of(host, world)))

    def address(self, host):
        """The address that reaches the host through this system."""
        return host.address

    def spawn(self, host, *command):
        log = host.dir / "log"
        self.processes.append((self.world.lab.spawn(host.netns, *command, log=log), log))

    def _await_way(self, netns, address):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.check_alive()
            try:
                run(*inside(netns, "ping", "-n", "-q", "-c", "1", "-W", "1", address))
                return
            except Failure:
                if time.monotonic() > deadline:
                    raise Failure(f"{self.name}: {address} does not answer after {PATIENCE_S} s"
                                  f"{self._last_words()}") from None

    def check_alive(self):
        for process, log in self.processes:
            if process.poll() is not None:
                raise Failure(f"{self.name}: a daemon ended, exit status {process.returncode};"
                              f" its last words: {last_line(log)}")

    def _last_words(self):
        return "".join(f"; {last_line(log)}" for _, log in self.processes[:1])

    def cpu_seconds(self):
        """What its daemons have used so far: user and system, all threads. None: no daemon."""
        if not self.processes:
            return None
        return sum(cpu_seconds(process.pid) for process, _ in self.processes)

    def peak_memory_mib(self):
        """The most that one of its daemons ever had in memory. None: no daemon."""
        if not self.processes:
            return None
        return max(peak_memory_mib(process.pid) for process, _ in self.processes)


class Vxlan(System):
    """Kernel VXLAN exactly as flannel sets it up (facts: flannel's backend/vxlan)."""

    label = "kernel VXLAN"
    mtu = 1450

    def address(self, host):
        return host.overlay

    def set_up(self, world):
        def mac(host):
            return f"02:00:00:00:07:{host.number:02x}"

        for host in world.hosts:
            batch(host.netns,
                  f"link add flannel.1 mtu {self.mtu} address {mac(host)} type vxlan id 1"
                  f" local {host.address} dev eth0 dstport 8472 nolearning",
                  f"addr add {host.overlay}/32 dev flannel.1", "link set flannel.1 up")
            peers = peers_of(host, world)
            batch(host.netns, *(f"neigh replace {peer.overlay} lladdr {mac(peer)} dev flannel.1"
                                " nud permanent" for peer in peers))
            entries = [f"fdb replace {mac(peer)} dev flannel.1 dst {peer.address} self permanent"
                       for peer in peers]
            run("bridge", "-n", host.netns, "-batch", "-", stdin="\n".join(entries) + "\n")
            batch(host.netns, *(f"route replace {peer.subnet} via {peer.overlay} dev flannel.1"
                                " onlink" for peer in peers))


class Ours(System):
    """flanneld of this project, on a directory as its store."""

    def __init__(self, name, binary, flags=()):
        super().__init__(name)
        self.label, self.binary, self.flags = name, binary, flags

    def address(self, host):
        return host.overlay

    def set_up(self, world):
        store = world.dir / "store"
        store.mkdir(parents=True)
        (store / "config").write_text(network_config(world))
        for host in world.hosts:
            self.start_daemon(host, "--store-dir", store, *self.flags)
        self.take_mtu(world)

    def start_daemon(self, host, *store_and_flags):
        # As an operator would who wants the host to have this subnet.
        host.write_subnet_env(1472)
        self.spawn(host, self.binary, *store_and_flags, "--public-ip", host.address,
                   "--iface", "eth0", "--subnet-file", host.subnet_file)

    def take_mtu(self, world):
        """Waits for the leases; they must be the ones that were asked for."""
        deadline = time.monotonic() + PATIENCE_S
        for host in world.hosts:
            while f"inet {host.overlay}/32" not in run("ip", "-n", host.netns, "addr"):
                self.check_alive()
                if time.monotonic() > deadline:
                    raise Failure(f"{self.name}: no lease {host.subnet} after {PATIENCE_S} s"
                                  f"{self._last_words()}")
                time.sleep(0.02)
        env = world.hosts[0].subnet_file.read_text().split()
        self.mtu = int(dict(line.split("=", 1) for line in env)["FLANNEL_MTU"])


class Upstream(Ours):
    """Any flanneld with the udp backend, upstream's for instance, on a real etcd."""

    def set_up(self, world):
        world.dir.mkdir(parents=True, exist_ok=True)
        url, near = "http://10.4.7.1:2379", "http://127.0.0.1:2379"
        log = world.dir / "etcd.log"
        etcd = world.lab.spawn(
            world.switch, "etcd", "--data-dir", world.dir / "etcd",
            "--listen-client-urls", f"{url},{near}", "--advertise-client-urls", url,
            "--listen-peer-urls", "http://127.0.0.1:2380", log=log)
        etcdctl = inside(world.switch, "env", "ETCDCTL_API=3", "etcdctl", "--endpoints", near)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                run(*etcdctl, "put", "/coreos.com/network/config", network_config(world))
                break
            except Failure as failure:
                if etcd.poll() is not None or time.monotonic() > deadline:
                    raise Failure(f"etcd: {failure}; {last_line(log)}") from None
        for host in world.hosts:
            self.start_daemon(host, f"--etcd-endpoints={url}")
        self.take_mtu(world)


class WireguardGo(System):
    """wireguard-go: userspace like ours, but it encrypts."""

    label = "wireguard-go"
    mtu = 1420

    def address(self, host):
        return host.overlay

    def set_up(self, world):
        public = {}
        for host in world.hosts:
            # Its control socket is named after the device, and all namespaces share /run.
            device = self.device(host)
            # In the foreground, so that its processor time is that of a process we know.
            self.spawn(host, "env", "WG_PROCESS_FOREGROUND=1", "wireguard-go", "-f", device)
            key = run("wg", "genkey")
            public[host.number] = run("wg", "pubkey", stdin=key).strip()
            (host.dir / "key").write_text(key)
            self._await_device(host, device)
        for host in world.hosts:
            device = self.device(host)
            run(*inside(host.netns, "wg", "set", device, "listen-port", 51820,
                        "private-key", host.dir / "key"))
            for peer in peers_of(host, world):
                run(*inside(host.netns, "wg", "set", device, "peer", public[peer.number],
                            "allowed-ips", peer.subnet, "endpoint", f"{peer.address}:51820"))
            batch(host.netns, f"addr add {host.overlay}/32 dev {device}",
                  f"link set {device} mtu {self.mtu} up", f"route add {NETWORK} dev {device}")

    @staticmethod
    def device(host):
        return "wg" + host.netns.removeprefix("flanneld-bench").replace("-", "_")

    def _await_device(self, host, device):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.check_alive()
            try:
                return run(*inside(host.netns, "wg", "show", device))
            except Failure:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


class Nebula(System):
    """nebula: userspace like ours, but it encrypts; its pods' subnets are unsafe routes."""

    label = "nebula"
    mtu = 1300

    def address(self, host):
        return f"192.168.100.{host.number}"

    def set_up(self, world):
        place = world.dir
        run("nebula-cert", "ca", "-name", "bench", "-out-crt", place / "ca.crt",
            "-out-key", place / "ca.key")
        for host in world.hosts:
            crt, key = host.dir / "host.crt", host.dir / "host.key"
            run("nebula-cert", "sign", "-ca-crt", place / "ca.crt", "-ca-key", place / "ca.key",
                "-name", host.number, "-ip", f"{self.address(host)}/24", "-subnets", host.subnet,
                "-out-crt", crt, "-out-key", key)
            peers = peers_of(host, world)
            rule = [{"port": "any", "proto": "any", "host": "any"}]
            config = {  # JSON is YAML.
                "pki": {"ca": str(place / "ca.crt"), "cert": str(crt), "key": str(key)},
                "static_host_map": {self.address(peer): [f"{peer.address}:4242"] for peer in peers},
                "lighthouse": {"am_lighthouse": False, "hosts": []},
                "listen": {"host": "0.0.0.0", "port": 4242},
                "tun": {"dev": "nebula1", "mtu": self.mtu, "unsafe_routes": [
                    {"route": peer.subnet, "via": self.address(peer)} for peer in peers]},
                "firewall": {"outbound": rule, "inbound": rule},
            }
            (host.dir / "config.yml").write_text(json.dumps(config))
            self.spawn(host, "nebula", "-config", host.dir / "config.yml")


def peers_of(host, world):
    """The first host knows all others, the others the first: nobody else talks here."""
    hub, *others = world.hosts
    return others if host is hub else [hub]


def network_config(world):
    return json.dumps({
        "Network": NETWORK, "SubnetMin": world.hosts[0].overlay,
        "SubnetMax": world.hosts[-1].overlay, "Backend": {"Type": "udp"},
    })


def last_line(log):
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def cpu_seconds(pid):
    """proc_pid_stat(5): utime and stime, in ticks of 10 ms, behind the name in brackets."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def peak_memory_mib(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise Failure(f"process {pid} has ended")


# Each offload of ours that can be switched off, and what that is called.
VARIANTS = {
    "tso": ("--offload=tso",),
    "no-gso": ("--udp-gso=false",),
    "no-gro": ("--udp-gro=false",),
    "off": ("--offload=off",),
}


def all_systems(binaries, peers):
    """Name → how to make that system; a new one for each world."""
    makers = {"none": lambda: System("none"), "vxlan": lambda: Vxlan("vxlan")}
    for name, path in binaries.items():
        if not name.isalnum() or name in ("none", "vxlan", "flanneld", "nebula"):
            raise Failure(f"--flanneld {name}={path}: expected another name, of letters and digits")
        if not shutil.which(path):
            raise Failure(f"--flanneld {path}: expected an executable file")
        makers[name] = lambda name=name, path=path: Ours(name, path)
        for variant, flags in VARIANTS.items():
            full = f"{name}-{variant}"
            makers[full] = lambda full=full, path=path, flags=flags: Ours(full, path, flags)
    for peer in peers:
        name, _, path = peer.partition("=")
        if name == "wireguard-go":
            makers[name] = lambda: WireguardGo("wireguard-go")
        elif name == "nebula":
            makers[name] = lambda: Nebula("nebula")
        elif name == "flanneld" and path and shutil.which(path):
            makers[name] = lambda path=path: Upstream("flanneld", path)
        else:
            raise Failure(f"--peer {peer}: expected flanneld=PATH, wireguard-go or nebula")
    return makers
