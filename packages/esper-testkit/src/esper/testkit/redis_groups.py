"""Several throwaway Redis servers that work together: a master with sentinels, and a cluster.

Built from the servers of `redis`; tests end and freeze single ones to see a failover.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from esper.testkit.redis import RedisServer, free_port

_DEADLINE_SECONDS = 90.0
"""A sentinel that did not run for two seconds, on a busy machine, rests for thirty ("tilt")."""
_NUM_SLOTS = 16384
SERVICE = "esper-tests"
"""The name by which the sentinels know their master."""


class SentinelServer(RedisServer):
    """One sentinel that watches a master; a majority of one decides within half a second."""

    def __init__(
        self, folder: Path, master: RedisServer, *, password: str | None, binary: str | None
    ) -> None:
        super().__init__(folder, password=password, binary=binary)
        self._master = master

    def _config(self, port: int) -> str:
        lines = [
            f"bind {self.host}",
            f"port {port}",
            f"dir {self._folder}",
            "logfile redis.log",
            f"sentinel monitor {SERVICE} {self._master.host} {self._master.port} 1",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 2000",
        ]
        if self._master.password is not None:
            lines.append(f'sentinel auth-pass {SERVICE} "{self._master.password}"')
        if self.password is not None:
            lines.append(f'requirepass "{self.password}"')
        return "\n".join([*lines, ""])

    def _arguments(self) -> Sequence[str]:
        return ["--sentinel"]


@dataclass(frozen=True, kw_only=True)
class SentinelTrio:
    """A master, its replica and a sentinel that puts one in the other's place."""

    sentinel: SentinelServer
    servers: tuple[RedisServer, RedisServer]

    @property
    def url(self) -> str:
        """The URL for clients, passwords included."""
        password = self.servers[0].password
        credentials = "" if password is None else f":{password}@"
        query = (
            "" if self.sentinel.password is None else f"?sentinel_password={self.sentinel.password}"
        )
        return f"redis+sentinel://{credentials}{self.sentinel.host}:{self.sentinel.port}/{SERVICE}{query}"

    def master(self) -> RedisServer:
        """Return the server that the sentinel takes for the master."""
        with client_of(self.sentinel) as client:
            found: Any = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(found[1]))

    def fail_over(self) -> None:
        """Have the sentinel put the replica in the place of the master, which lives on as its replica.

        Asks again when the sentinel gave up, and not at all when it has done so by itself.
        """
        old, new = self.servers

        def is_master() -> bool:
            if self.master() is new:
                return _role(new) == "master"
            with client_of(self.sentinel) as client:
                client.execute_command("SENTINEL FAILOVER", SERVICE)
            return False

        wait_for(is_master, f"{new.port} to become the master")
        with client_of(old) as client:
            client.replicaof(new.host, new.port)  # as the sentinel does, ten seconds later
        wait_for(lambda: _is_linked(old), f"{old.port} to follow the new master")

    def wait_for_master(self, server: RedisServer) -> None:
        """Wait until the sentinel has made `server` the master and it takes writes."""
        wait_for(
            lambda: self.master() is server and _role(server) == "master",
            f"{server.port} to become the master",
        )


@contextmanager
def start_sentinel(
    folder: Path,
    *,
    password: str | None = None,
    sentinel_password: str | None = None,
    binary: str | None = None,
) -> Generator[SentinelTrio]:
    """Run a master, a replica and a sentinel with their files in `folder`.

    Raises:
        FileNotFoundError: if this machine has no such server; says what to install.
        RuntimeError: if one does not start.

    """
    with ExitStack() as running:

        def start(server: RedisServer) -> None:
            server.start()
            running.callback(server.stop)

        login = [] if password is None else [f'masterauth "{password}"']
        folders = [folder / name for name in ("one", "two", "sentinel")]
        for each in folders:
            each.mkdir()
        settings = [*login, "repl-diskless-sync-delay 0", "repl-ping-replica-period 1"]
        one = RedisServer(folders[0], password=password, binary=binary, settings=settings)
        start(one)
        replica = [*settings, f"replicaof {one.host} {one.port}"]
        two = RedisServer(folders[1], password=password, binary=binary, settings=replica)
        start(two)
        wait_for(lambda: _is_linked(two), "the replica to follow its master")
        sentinel = SentinelServer(folders[2], one, password=sentinel_password, binary=binary)
        start(sentinel)
        wait_for(lambda: _knows_replica(sentinel), "the sentinel to find the replica")
        yield SentinelTrio(sentinel=sentinel, servers=(one, two))


class ClusterServer(RedisServer):
    """One node of a cluster; it listens on a second port, 10,000 above the first."""

    def _free_port(self) -> int:
        while True:
            port = free_port()
            if port + 10_000 <= 65_535:
                return port


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Masters that share the hash slots, and perhaps a replica for each."""

    masters: Sequence[RedisServer]
    replicas: Sequence[RedisServer]

    @property
    def url(self) -> str:
        """The URL for clients, password included; names every master."""
        password = self.masters[0].password
        credentials = "" if password is None else f":{password}@"
        nodes = ",".join(f"{server.host}:{server.port}" for server in self.masters)
        return f"redis+cluster://{credentials}{nodes}"

    def owner(self, key: str) -> RedisServer:
        """Return the server that has the key's slot."""
        for server in (*self.masters, *self.replicas):
            if _owns(server, key):
                return server
        raise LookupError(f"no server has the slot of {key!r}")

    def move_slot(self, key: str, target: RedisServer) -> None:
        """Move the slot of `key` with all its keys to `target`, as an operator does it live."""
        source = self.owner(key)
        with client_of(source) as sender, client_of(target) as receiver:
            slot: Any = sender.execute_command("CLUSTER KEYSLOT", key)
            ids = {server: _node_id(server) for server in (source, target)}
            receiver.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
            sender.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
            login = [] if target.password is None else ["AUTH", target.password]
            where = [target.host, target.port, "", 0, 5000, *login, "KEYS"]
            keys: Any
            while keys := sender.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                sender.execute_command("MIGRATE", *where, *keys)
            for server in (target, source, *self.masters):
                with client_of(server) as told:
                    told.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])


@contextmanager
def start_cluster(
    folder: Path,
    *,
    num_masters: int = 3,
    with_replicas: bool = False,
    password: str | None = None,
    binary: str | None = None,
) -> Generator[Cluster]:
    """Run a cluster with its files in `folder`; each master has an equal share of the slots.

    Raises:
        FileNotFoundError: if this machine has no such server; says what to install.
        RuntimeError: if one does not start.

    """
    login = [] if password is None else [f'masterauth "{password}"']
    settings = [
        *login,
        "cluster-enabled yes",
        "cluster-node-timeout 1000",
        "cluster-replica-validity-factor 0",
    ]
    num_servers = num_masters * (2 if with_replicas else 1)
    with ExitStack() as running:
        servers: list[RedisServer] = []
        for number in range(num_servers):
            place = folder / str(number)
            place.mkdir()
            server = ClusterServer(place, password=password, binary=binary, settings=settings)
            server.start()
            running.callback(server.stop)
            servers.append(server)
        cluster = Cluster(masters=servers[:num_masters], replicas=servers[num_masters:])
        _join(cluster)
        yield cluster


def _join(cluster: Cluster) -> None:
    masters, replicas = cluster.masters, cluster.replicas
    everyone = [*masters, *replicas]
    first = masters[0]
    for number, server in enumerate(masters):
        begin, end = (_NUM_SLOTS * n // len(masters) for n in (number, number + 1))
        with client_of(server) as client:
            client.execute_command("CLUSTER ADDSLOTS", *range(begin, end))
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
    for server in everyone[1:]:
        with client_of(server) as client:
            client.execute_command("CLUSTER MEET", first.host, first.port)
    wait_for(lambda: all(_num_known(s) == len(everyone) for s in everyone), "the nodes to meet")
    for master, replica in zip(masters, replicas, strict=False):
        with client_of(replica) as client:
            client.execute_command("CLUSTER REPLICATE", _node_id(master))
    wait_for(lambda: all(_is_linked(replica) for replica in replicas), "the replicas to follow")
    wait_for(lambda: all(_is_up(server) for server in everyone), "the cluster to be up")


def client_of(server: RedisServer) -> Any:
    """Return a client of one server, without retries."""
    return redis.Redis(
        host=server.host,
        port=server.port,
        password=server.password,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=5.0,
    )


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    """Wait until it is so; servers that cannot be reached at the moment count as no."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            if is_so():
                return
        except (redis.RedisError, LookupError) as error:
            last: object = error
        else:
            last = "not yet"
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_DEADLINE_SECONDS:.0f} s for {what}: {last}")
        time.sleep(0.02)


def _role(server: RedisServer) -> str:
    with client_of(server) as client:
        return str(client.info("replication")["role"])


def _is_linked(server: RedisServer) -> bool:
    with client_of(server) as client:
        return client.info("replication").get("master_link_status") == "up"


def _knows_replica(sentinel: SentinelServer) -> bool:
    with client_of(sentinel) as client:
        return client.info("sentinel")["master0"]["slaves"] == 1


def _node_id(server: RedisServer) -> str:
    with client_of(server) as client:
        return client.execute_command("CLUSTER MYID").decode()


def _cluster_info(server: RedisServer) -> dict[str, str]:
    with client_of(server) as client:
        return client.execute_command("CLUSTER INFO")


def _num_known(server: RedisServer) -> int:
    return int(_cluster_info(server)["cluster_known_nodes"])


def _is_up(server: RedisServer) -> bool:
    return _cluster_info(server)["cluster_state"] == "ok"


def _owns(server: RedisServer, key: str) -> bool:
    """Tell whether the server is a master that answers for the key itself."""
    try:
        with client_of(server) as client:
            client.execute_command("PERSIST", key)  # a write that changes nothing here
    except redis.RedisError:
        return False
    return True
