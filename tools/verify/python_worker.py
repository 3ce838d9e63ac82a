"""A worker of numalign written from proto/numalign.proto alone, for trying what a coordinator makes of it.

Usage: python python_worker.py --proto proto/numalign.proto --address HOST:PORT work [--hidden D]
       python python_worker.py --proto proto/numalign.proto --address HOST:PORT misbehave --hidden D

`work` takes part in a run of solver adam to its end, alone, with rows of its own making. `misbehave` needs a run with
`--deterministic false` and at least two honest workers of the same model; it does one wrong thing after the other, as a
stranger, as a member and as a rank, and prints each. Shares no code with numalign. Needs grpcio, grpcio-tools, blake3 and
numpy; exit code 77: one of them is not installed.
"""
import argparse
import importlib
import json
import os
import queue
import struct
import sys
import tempfile
import threading
import time

try:
    import blake3
    import grpc
    import numpy as np
    from grpc_tools import protoc
except ImportError as missing:
    print(f"skipped: {missing}", file=sys.stderr)
    sys.exit(77)

METHOD = "/numalign.v1.Coordinator/"
NOT_MINE = b"\0" * 32


def compile_proto(path):
    """The messages of the proto."""
    folder = tempfile.mkdtemp()
    arguments = ["protoc", f"-I{os.path.dirname(os.path.abspath(path))}", f"--python_out={folder}", os.path.basename(path)]
    if protoc.main(arguments) != 0:
        sys.exit("the proto does not compile")
    sys.path.insert(0, folder)
    return importlib.import_module(os.path.basename(path).replace(".proto", "_pb2"))


def hash_of(data):
    return blake3.blake3(data).digest()


def seal(message):
    """The bytes of a message as they travel: the digest of all others is the last field."""
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return data + bytes([15 << 3 | 2, 16]) + hash_of(data)[:16]


def opener(kind):
    """Reads a message that travelled."""
    def read(data):
        if data[-18:-16] != bytes([15 << 3 | 2, 16]) or data[-16:] != hash_of(data[:-18])[:16]:
            raise ValueError("a damaged message")
        return kind.FromString(data[:-18])
    return read


class Link:
    """One connection to a coordinator."""

    def __init__(self, pb, address, seal_with=seal):
        self.pb = pb
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.say = queue.Queue()
        control = self.channel.stream_stream(
            METHOD + "Control", request_serializer=seal_with, response_deserializer=opener(pb.CoordinatorMessage))
        self.inbox = queue.Queue()
        answers = control(iter(self.say.get, None))
        threading.Thread(target=self.read, args=(answers,), daemon=True).start()
        self.open_work = self.channel.stream_stream(
            METHOD + "Work", request_serializer=seal, response_deserializer=opener(pb.WorkMessage))

    def read(self, answers):
        """Messages, then None, or what broke the stream."""
        try:
            for message in answers:
                self.inbox.put(message)
            self.inbox.put(None)
        except (grpc.RpcError, ValueError) as error:
            self.inbox.put(error)

    def send(self, **fields):
        self.say.put(self.pb.WorkerMessage(**fields))

    def hello(self, host="python", **fields):
        self.send(hello=self.pb.Hello(protocol=PROTOCOL, build="python", host=host, pid=os.getpid(), **fields))

    def answer(self, timeout=20):
        """The next message, within the timeout; None at the stream's end."""
        try:
            message = self.inbox.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError("no answer") from None
        if isinstance(message, Exception):
            raise message
        return message

    def wait_for(self, name, timeout=20):
        until = time.monotonic() + timeout
        while True:
            message = self.answer(max(0.1, until - time.monotonic()))
            if message is None:
                return None
            kind = message.WhichOneof("message")
            if kind == name:
                return getattr(message, kind)
            if kind == "abort":
                raise ConnectionError(message.abort.reason)

    def join(self, hidden, host="python"):
        """Says Hello and Ready; answers with Welcome."""
        self.hello(host)
        welcome = self.wait_for("welcome")
        self.ready(welcome, hidden)
        return welcome

    def ready(self, welcome, hidden, **fields):
        known = dict(
            base_fingerprint=welcome.base_fingerprint or hash_of(b"python").hex(), hidden_size=hidden,
            model_parameters=1, weights="made up", device="numpy", trial_digest=NOT_MINE, no_nccl="it is Python")
        known.update(fields)
        self.send(ready=self.pb.Ready(**known))

    def close(self):
        self.say.put(None)
        self.channel.close()


def fused(a, b, c):
    """a * b + c of f32, rounded once: the product is exact in f64, and a sum rounded to odd rounds to f32 as the exact one."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    part = total - product
    rest = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    even = (rest != 0) & (bits & 1 == 0)
    away = (rest > 0) == (total > 0)
    return np.where(even, bits + np.where(away, 1, -1), bits).view(np.float64).astype(np.float32)


def adam(state, reduced, rate):
    """The state's bytes after one update: step, layout, both powers, parameters, moments. The same bits as everywhere."""
    step, layout, power_1, power_2 = struct.unpack_from("<QQdd", state)
    p, m, v = np.frombuffer(state, np.float32, offset=32).reshape(3, -1).copy()
    power_1, power_2 = power_1 * 0.9, power_2 * 0.999
    g = reduced[:-1]
    size, correction = np.float32(-(rate / (1 - power_1))), np.float32(np.sqrt(1 - power_2))
    m = fused(g - m, np.float32(1 - 0.9), m)
    v = fused(np.float32(1 - 0.999) * g, g, v * np.float32(0.999))
    p += size * m / (np.sqrt(v) / correction + np.float32(1e-8))
    return struct.pack("<QQdd", step + 1, layout, power_1, power_2) + b"".join(a.tobytes() for a in (p, m, v))


def learning_rate(recipe, step):
    rate = recipe["lr"]
    if recipe["shl"]:
        for _ in range(step // recipe["num_batches"] // recipe["lr_step_epochs"]):
            rate *= recipe["lr_gamma"]
    return rate


def row_of(pb, micro_batch, floats):
    data = np.asarray(floats, np.float32).tobytes()
    return pb.Row(micro_batch=micro_batch, values=data, digest=hash_of(data))


def work(pb, address, hidden):
    """Takes part to the end, alone."""
    link = Link(pb, address)
    welcome = link.join(hidden)
    recipe = json.loads(welcome.config)["recipe"]
    total = recipe["num_epochs"] * recipe["num_batches"]
    begin = link.wait_for("begin")
    state, generation = begin.state, begin.generation
    say = queue.Queue()
    say.put(pb.RankMessage(generation=generation, member=welcome.member, credit=4))
    answers = link.open_work(iter(say.get, None))
    step, = struct.unpack_from("<Q", state)
    work, report = [], None
    while step < total:
        rows = []
        for index in range(begin.first_micro_batch, begin.end_micro_batch):
            while not work:
                work.extend(next(answers).work)
            message = work.pop(0)
            assert (message.unit, message.micro_batch) == (step, index), message
            targets = np.array([sample.target for sample in message.samples])
            floats = np.full(len(state[32:]) // 12 + 1, 1e-3 * targets.mean() / recipe["max_val"], np.float32)
            rows.append(row_of(pb, index, floats))
        say.put(pb.RankMessage(credit=1, unit=step, rows=rows, done=report))
        while True:
            answer = next(answers)
            work.extend(answer.work)
            if answer.HasField("sum"):
                break
        assert answer.sum.unit == step
        reduced = np.frombuffer(answer.sum.sum, np.float32)
        state = adam(state, reduced, learning_rate(recipe, step))
        report = pb.UnitDone(generation=generation, unit=step, loss=float(reduced[-1]), digest=hash_of(state))
        link.send(heartbeat=pb.Heartbeat(generation=generation.number, rows_until=step + 1))
        step += 1
    link.send(unit_done=report)
    done = link.wait_for("done")
    print(f"done: {done.summary}")
    link.close()


class Rank:
    """A member that was admitted and got a rank: its own part of a generation."""

    def __init__(self, pb, address, hidden, host):
        self.pb, self.link = pb, Link(pb, address)
        self.welcome = self.link.join(hidden, host)
        self.beating = True
        self.generation = 0
        threading.Thread(target=self.beat, daemon=True).start()
        self.begin = self.link.wait_for("begin", 40)
        if self.begin is None:
            raise ConnectionError("the stream ended")
        self.generation = self.begin.generation.number
        self.unit, = struct.unpack_from("<Q", self.begin.state)
        self.row_len = len(self.begin.state[32:]) // 12 + 1
        self.own = range(self.begin.first_micro_batch, self.begin.end_micro_batch)
        self.say = queue.Queue()
        self.say.put(pb.RankMessage(generation=self.begin.generation, member=self.welcome.member, credit=1))
        self.answers = self.link.open_work(iter(self.say.get, None), timeout=15)

    def beat(self):
        while self.beating:
            self.link.send(heartbeat=self.pb.Heartbeat(generation=self.generation))
            time.sleep(0.2)

    def rows(self, value=0.0, length=None):
        return [row_of(self.pb, index, np.full(length or self.row_len, value)) for index in self.own]

    def reduce(self, rows, unit=None, more=False, **fields):
        """Sends rows; answers with the sum, or with what the stream ends with."""
        self.say.put(self.pb.RankMessage(unit=self.unit if unit is None else unit, rows=rows, more=more, **fields))
        try:
            return None if more else next(answer.sum for answer in self.answers if answer.HasField("sum"))
        except grpc.RpcError as error:
            return error.code()
        except StopIteration:
            return "the stream ended"

    def done(self, unit=None, **fields):
        known = dict(generation=self.begin.generation, unit=self.unit if unit is None else unit, digest=NOT_MINE)
        known.update(fields)
        self.link.send(unit_done=self.pb.UnitDone(**known))

    def close(self):
        self.beating = False
        self.say.put(None)
        self.link.close()


def as_stranger(pb, address, hidden):
    """What anybody can say before being admitted; each is one connection."""
    def hello(**fields):
        return lambda link: link.send(hello=pb.Hello(**{"protocol": PROTOCOL, "host": "python", **fields}))

    def after_welcome(act):
        def run(link):
            link.hello()
            act(link, link.wait_for("welcome"))
        return run

    def rejoin(state):
        def run(link):
            other = Link(pb, address)
            other.hello()
            welcome = other.wait_for("welcome")
            other.close()
            config = json.loads(welcome.config)
            digest = blake3.blake3(json.dumps(config["recipe"], separators=(",", ":")).encode()).hexdigest()
            link.hello(rejoin_state=pb.RejoinState(
                run_id=welcome.run_id, config_digest=digest, state=state(config["recipe"]), mac=NOT_MINE))
        return run

    def last_state(recipe):
        steps = recipe["num_epochs"] * recipe["num_batches"]
        return struct.pack("<QQdd", steps, hidden, 0.9 ** steps, 0.999 ** steps) + b"\0" * 12 * (3 * hidden + 1)

    def flood(link):
        for _ in range(10_000):
            link.send(heartbeat=pb.Heartbeat(generation=2 ** 63, rows_until=2 ** 63, damaged=2 ** 62))

    def come_and_go(_):
        for _ in range(100):
            other = Link(pb, address)
            other.hello()
            other.close()

    def hold_open(_):
        held = [Link(pb, address) for _ in range(50)]
        time.sleep(1)
        for other in held:
            other.close()

    def absurd_ready(**fields):
        return after_welcome(lambda link, welcome: link.ready(welcome, hidden, **fields))

    escape = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e" + "x" * 1_000_000
    generation = pb.Generation(incarnation=1, number=1)
    return [
        ("another protocol", hello(protocol=1)),
        ("no Hello first", lambda link: link.send(heartbeat=pb.Heartbeat())),
        ("an empty message", lambda link: link.send()),
        ("Hello twice", after_welcome(lambda link, _: link.hello())),
        ("17 MiB of host name", hello(host="x" * (17 << 20))),
        ("a rejoin state of noise", rejoin(lambda _: os.urandom(1000))),
        ("a rejoin state of the last step", rejoin(last_state)),
        ("a hidden size of 0", absurd_ready(hidden_size=0)),
        ("a hidden size of 2^32-1", absurd_ready(hidden_size=2 ** 32 - 1)),
        ("another fingerprint", absurd_ready(base_fingerprint="ff" * 32)),
        ("a trial digest of 1 MiB", absurd_ready(trial_digest=b"\1" * (1 << 20))),
        ("terminal escapes", absurd_ready(device=escape, weights=escape, base_fingerprint=escape)),
        ("a permanent failure", after_welcome(lambda link, _: link.send(failure=pb.Failure(permanent=True, message=escape)))),
        ("a permanent failure of the data",
         after_welcome(lambda link, _: link.send(failure=pb.Failure(permanent=True, data=True, message="bad data")))),
        ("an NCCL id out of place",
         after_welcome(lambda link, _: link.send(nccl_id=pb.NcclId(generation=generation, id=b"\1" * 128)))),
        ("a report without a rank", after_welcome(
            lambda link, _: link.send(unit_done=pb.UnitDone(generation=generation, unit=2 ** 64 - 1, digest=NOT_MINE)))),
        ("10,000 heartbeats", after_welcome(lambda link, _: flood(link))),
        ("100 times Hello and away", come_and_go),
        ("50 silent connections", hold_open),
        ("a stranger's rows", lambda link: next(link.open_work(iter([pb.RankMessage(
            generation=generation, member=1, unit=0, rows=[row_of(pb, 0, [1.0])])]), timeout=5))),
        ("a stranger's credit", lambda link: next(link.open_work(
            iter([pb.RankMessage(generation=generation, member=1, credit=2 ** 32 - 1)]), timeout=5))),
    ]


def as_rank(pb):
    """What an admitted rank can do with its part of a generation."""
    def other_rows(rank):
        foreign = next(index for index in range(1000) if index not in rank.own)
        return rank.reduce([row_of(pb, foreign, np.zeros(rank.row_len))])

    def changed_row(rank):
        rows = rank.rows()
        rows[0].digest = NOT_MINE
        return rank.reduce(rows)

    def twice(rank):
        rank.reduce(rank.rows(1.0), more=True)
        return rank.reduce(rank.rows(2.0), more=True)

    def junk_units(rank):
        for unit in range(10 ** 15, 10 ** 15 + 100):
            rank.reduce(rank.rows(), unit=unit, more=True)

    def ahead(rank):
        for unit in range(rank.unit + 1, rank.unit + 2000):
            rank.done(unit=unit, state=rank.begin.state, features=b"\0" * 4096)

    def wrong_digest(rank):
        rank.reduce(rank.rows())
        rank.done()

    def wrong_report(rank):
        done = pb.UnitDone(generation=rank.begin.generation, unit=rank.unit, digest=b"\1" * 5)
        return rank.reduce(rank.rows(), done=done)

    def absurd_figures(rank):
        rank.done(compute_us=2 ** 64 - 1, data_wait_us=2 ** 64 - 1, reduce_us=2 ** 64 - 1, peak_rss_mib=2 ** 64 - 1)

    return [
        ("rows of another rank", other_rows),
        ("rows that are not finite", lambda rank: rank.reduce(rank.rows(float("nan")))),
        ("rows of another length", lambda rank: rank.reduce(rank.rows(length=3))),
        ("a row that is not its digest's", changed_row),
        ("one row twice with different bits", twice),
        ("rows of 100 far units", junk_units),
        ("2,000 reports ahead", ahead),
        ("a state digest that no other rank has", wrong_digest),
        ("absurd figures", absurd_figures),
        ("a digest of five bytes along with rows", wrong_report),
        ("a digest of five bytes", lambda rank: rank.done(digest=b"\1" * 5)),
        ("a state of noise", lambda rank: rank.done(state=os.urandom(999))),
        ("a failure of NCCL", lambda rank: rank.link.send(
            nccl_failed=pb.NcclFailed(generation=rank.begin.generation, reason="none"))),
    ]


def misbehave(pb, address, hidden):
    """One wrong thing after the other."""
    count = 0
    for what, act in as_stranger(pb, address, hidden):
        link = Link(pb, address)
        try:
            act(link)
            outcome = link.answer(3)
            outcome = outcome and outcome.WhichOneof("message")
        except (grpc.RpcError, ConnectionError, TimeoutError, StopIteration) as error:
            outcome = error.code() if isinstance(error, grpc.RpcError) else error
        count += 1
        print(f"stranger, {what}: {str(outcome)[:100]!r}", flush=True)
        link.close()
    broken = [("no digest", lambda message: message.SerializeToString()),
              ("a wrong digest", lambda message: message.SerializeToString() + b"\x7a\x10" + b"\0" * 16),
              ("noise", lambda message: os.urandom(100)), ("a message cut off", lambda message: seal(message)[:-3])]
    for what, seal_with in broken:
        link = Link(pb, address, seal_with)
        try:
            link.hello()
            outcome = link.answer(3)
        except (grpc.RpcError, TimeoutError) as error:
            outcome = error.code() if isinstance(error, grpc.RpcError) else error
        count += 1
        print(f"stranger, {what}: {str(outcome)[:100]!r}", flush=True)
        link.close()
    for number, (what, act) in enumerate(as_rank(pb)):
        try:
            rank = Rank(pb, address, hidden, f"python-{number}")
        except (grpc.RpcError, ConnectionError, TimeoutError) as error:
            sys.exit(f"no rank for `{what}`: {error}")
        outcome = act(rank)
        # It stays until it is dismissed, or for a moment.
        try:
            rank.link.wait_for("done", 1)
        except (grpc.RpcError, ConnectionError, TimeoutError) as error:
            outcome = error.code() if isinstance(error, grpc.RpcError) else error
        count += 1
        print(f"rank, {what}: {str(outcome)[:100]!r}", flush=True)
        rank.close()
    print(f"{count} wrong things done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--proto", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--protocol", type=int, default=8)
    parser.add_argument("what", choices=["work", "misbehave"])
    parser.add_argument("--hidden", type=int, default=8, help="hidden size of the honest workers' model")
    arguments = parser.parse_args()
    PROTOCOL = arguments.protocol
    messages = compile_proto(arguments.proto)
    {"work": work, "misbehave": misbehave}[arguments.what](messages, arguments.address, arguments.hidden)
