"""The attacks that every level which claims isolation must stand, as cases that a level's test class takes over.

Each is a program that tries what it must not be able to do, and says BREACH where it could; see `tests.sandboxing`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from gateway.verify.sandbox.job import Run
from tests.sandboxing import MIB, SECRET, Jailed, descendants
from tests.support import FREE_THREADED

# Without its lock CPython keeps all small objects in one mapping of a GiB.
SCANNED_MAX = 1 << (31 if FREE_THREADED else 28)


class EscapeCases(Jailed):
    """What a level that claims isolation must stand. Needs Linux."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.enter(tempfile.TemporaryDirectory()))
        self.folder.chmod(0o755)
        self.secret = self.folder / "secret.txt"
        self.secret.write_text(SECRET)
        self.secret.chmod(0o644)

    def enter(self, context: Any) -> Any:
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def test_the_hosts_files_and_the_gateways_memory_are_not_there(self) -> None:
        with mock.patch.dict(os.environ, GATEWAY_SECRET=SECRET):
            self.attack(
                f"mine = '/proc/%d/' % os.getpid()\n"
                f"for path in ['/etc/passwd', '/etc/shadow', {str(self.secret)!r}, '/old/etc/passwd',\n"
                f"        '/proc/{os.getpid()}/environ', '/root/.bashrc', '/dev/vda', '/dev/mem', '/dev/kmsg',\n"
                "        '/etc/machine-id', '/proc/kcore', '/proc/kmsg', '/sys/kernel/notes',\n"
                "        *glob.glob('/proc/[0-9]*/environ'), *glob.glob('/proc/[0-9]*/maps')]:\n"
                "    if not path.startswith(mine): attempt(path, lambda: open(path, 'rb').read(3000))\n"
                f"attempt('folder', lambda: (os.listdir({str(self.folder)!r}), 'BREACH'))\n"
                "attempt('tmp', lambda: os.listdir('/tmp') and 'BREACH')\n"
                "attempt('disks', lambda: glob.glob('/dev/[shv]d*') and 'BREACH')"
            )

    def test_nothing_outside_the_work_directory_can_be_written(self) -> None:
        self.attack(
            "for path in ['/x', '/usr/x', '/etc/passwd', '/etc/x', '/dev/x', '/root/x', '/proc/sys/kernel/hostname',\n"
            "        '/proc/sysrq-trigger', '/proc/1/oom_score_adj', '/proc/self/uid_map', sys.base_prefix + '/x',\n"
            f"        sys.base_prefix + '/bin/x', '/usr/bin/env', '/bin/sh', {str(self.secret)!r}, os.__file__]:\n"
            "    attempt(path, lambda: write(path, 'r+' if os.path.exists(path) else 'w'))\n"
            "attempt('chmod', lambda: (os.chmod('/usr', 0o777), 'BREACH'))\n"
            "attempt('mknod', lambda: (os.mknod('d', 0o60666, 0xfe00), 'BREACH'))\n"
            "attempt('rename', lambda: (os.rename('/usr', '/usr2'), 'BREACH'))\n"
            "attempt('time', lambda: syscall(227, 0, bytes(16)))\n"
        )
        self.assertEqual(self.secret.read_text(), SECRET)

    def test_there_is_no_network(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            self.attack(
                "def connect(family, address, kind=socket.SOCK_STREAM):\n"
                "    s = socket.socket(family, kind); s.settimeout(1); s.connect(address); return 'BREACH'\n"
                f"attempt('loopback', lambda: connect(socket.AF_INET, ('127.0.0.1', {server.getsockname()[1]})))\n"
                "attempt('outside', lambda: connect(socket.AF_INET, ('1.1.1.1', 53)))\n"
                "attempt('udp', lambda: connect(socket.AF_INET, ('1.1.1.1', 53), socket.SOCK_DGRAM))\n"
                "attempt('v6', lambda: connect(socket.AF_INET6, ('::1', 80)))\n"
                "attempt('name', lambda: (socket.getaddrinfo('example.com', 80), 'BREACH'))\n"
                "for family in (16, 17, 29, 31, 38, 40, 44):\n"
                "    attempt('family %d' % family, lambda: (socket.socket(family, socket.SOCK_DGRAM), 'BREACH'))\n"
                "    attempt('raw %d' % family, lambda: (socket.socket(family, socket.SOCK_RAW), 'BREACH'))\n"
                "attempt('raw', lambda: (socket.socket(2, socket.SOCK_RAW, 1), 'BREACH'))\n"
                "for family in (2, 10, 16, 17, 30, 40):\n"
                "    for kind in (1, 2, 5):\n"
                "        attempt('socket', lambda: (socket.socket(family, kind), 'BREACH'))\n"
                "        attempt('pair', lambda: (socket.socketpair(family, kind), 'BREACH'))"
            )
            with self.assertRaises(BlockingIOError):
                server.accept()

    def test_no_abstract_socket_of_the_host_or_of_another_run_is_there(self) -> None:
        name = f"gateway-test-{secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"\0{name}")
            server.listen()
            self.attack(
                f"s = socket.socket(socket.AF_UNIX)\nattempt('host', lambda: (s.connect('\\0{name}'), 'BREACH'))\n"
            )
        with self.concurrent(
            "import socket, time\ns = socket.socket(socket.AF_UNIX); s.bind('\\0peer'); s.listen(); time.sleep(60)"
        ):
            self.attack(
                "import time\nfor i in range(20):\n    s = socket.socket(socket.AF_UNIX)\n"
                "    attempt('peer', lambda: (s.connect('\\0peer'), 'BREACH'))\n    time.sleep(0.02)"
            )

    @contextlib.contextmanager
    def concurrent(self, code: str) -> Iterator[None]:
        """Another run beside, for a second."""
        runs: list[Run] = []
        thread = threading.Thread(target=lambda: runs.append(self.job(code, wall_s=1.0)))
        thread.start()
        try:
            yield
        finally:
            thread.join()
        self.assert_ended(runs[0], "wall")

    def test_another_runs_files_are_not_there(self) -> None:
        with self.concurrent(f"open('mine', 'w').write('{SECRET}')\nimport time; time.sleep(60)"):
            self.attack(
                "import time\nfor i in range(20):\n    for pattern in ('*', '/tmp/*', '/work/*', '/proc/*/cwd/*',\n"
                "            '/proc/*/root/work/*', '/dev/shm/*'):\n        for path in glob.glob(pattern):\n"
                "            attempt(path, lambda: open(path).read(100))\n    time.sleep(0.02)"
            )

    def test_nobody_outside_can_be_signalled_or_traced(self) -> None:
        others = sorted(descendants() | {os.getpid(), os.getppid()})
        said = self.attack(
            "from signal import *\nsignal(SIGTERM, SIG_IGN)\n"
            f"for pid in {others}:\n"
            "    if pid > 40:\n        attempt(pid, lambda: (os.kill(pid, 0), 'BREACH'))\n"
            "        syscall(129, pid, 9, 0)\n"
            "for number in (2, 9, 15, 17, 19): attempt('kill 1', lambda: os.kill(1, number))\n"
            "attempt('attach', lambda: syscall(101, 16, 1, 0, 0))\n"
            "attempt('read', lambda: syscall(310, 1, 0, 0, 0, 0, 0))\n"
            "attempt('memory', lambda: (open('/proc/1/mem', 'r+b'), 'BREACH'))\n"
            "attempt('limits', lambda: syscall(302, 1, 7, 0, bytes(16)))\n"
            "attempt('priority', lambda: syscall(141, 0, 1, 19))\n"
            "attempt('pidfd', lambda: syscall(438, 3, 3, 0))"
        )
        self.assertNotIn("nothing", said)
        self.assertEqual(self.job("print(1)").stdout, b"1\n")

    def test_descriptors_on_the_way_keep_no_other_run_from_its_processes(self) -> None:
        """The kernel counts them for all jobs of a user together, and a judge's processes need some, too."""
        task = {"mode": "outputs", "entry_point": "f", "inputs": ["[1]", "[2]"]}
        hold = (
            "import os, socket, time\npairs = [socket.socketpair() for i in range(9)]\nfor pair in pairs:\n"
            "    try:\n        while True: socket.send_fds(pair[0], [b'x'], [1] * 200)\n"
            "    except OSError: pass\ntime.sleep(60)"
        )
        with self.concurrent(hold):
            for _ in range(6):
                run = self.job("def f(x): return x + 1", harness="judge", payload=json.dumps(task).encode(), cpu_s=9.0)
                self.assertIn(b'"keys": ["2", "3"]', run.report, run)
                time.sleep(0.1)

    def test_links_lead_nowhere(self) -> None:
        secret = str(self.secret)
        self.attack(
            f"for i, path in enumerate([{secret!r}, '/etc/shadow', '/proc/1/root' + {secret!r},\n"
            f"        '/proc/self/root/../..' + {secret!r}, '/proc/self/cwd/../..' + {secret!r}]):\n"
            "    attempt(path, lambda: (os.symlink(path, 'l%d' % i), open('l%d' % i).read()))\n"
            f"attempt('hard', lambda: (os.link({secret!r}, 'h'), 'BREACH'))\n"
            "attempt('hard', lambda: (os.link('/proc/1/exe', 'h2'), 'BREACH'))"
        )

    def test_proc_tells_nothing_of_others(self) -> None:
        secret = str(self.secret)
        self.attack(
            "for path in ('/proc/1/root/', '/proc/1/cwd/', '/proc/self/root/../', '/proc/1/task/1/root/', '/../',\n"
            "        '/proc/self/task/../../1/root/', '/work/../../'):\n"
            "    attempt(path, lambda: os.path.isdir(path + 'root/.ssh') and 'BREACH')\n"
            "    attempt(path + 'old', lambda: (os.listdir(path + 'old'), 'BREACH'))\n"
            f"    attempt(path + 's', lambda: open(path + {secret!r}).read())\n"
            "for name in ('environ', 'maps', 'mem', 'exe', 'auxv', 'map_files'):\n"
            "    attempt(name, lambda: (open('/proc/1/' + name, 'rb').read(10), 'BREACH'))\n"
            "attempt('fd', lambda: (os.listdir('/proc/1/fd'), 'BREACH'))\n"
            "attempt('ns', lambda: syscall(308, os.open('/proc/1/ns/mnt', 0), 0))\n"
            "attempt('ns', lambda: syscall(308, os.open('/proc/self/ns/net', 0), 0))\n"
            "attempt('handle', lambda: syscall(303, -100, b'/usr', bytes(136), bytes(4), 0))"
        )

    def test_mounts_cannot_be_changed(self) -> None:
        self.attack(
            "attempt('remount', lambda: syscall(165, 0, b'/usr', 0, 32 | 4096, 0))\n"
            "attempt('remount', lambda: syscall(165, 0, b'/', 0, 32, 0))\n"
            "attempt('tmpfs', lambda: syscall(165, b'n', os.getcwd().encode(), b'tmpfs', 0, 0))\n"
            "for path in (b'/usr', b'/proc', b'/', os.getcwd().encode()):\n"
            "    attempt('umount', lambda: syscall(166, path, 2))\n"
            "attempt('pivot', lambda: syscall(155, b'.', b'.'))\n"
            "attempt('chroot', lambda: (os.chroot('.'), 'BREACH'))\n"
            "attempt('tree', lambda: syscall(428, -100, b'/', 1))\n"
            "attempt('fsopen', lambda: syscall(430, b'tmpfs', 0))\n"
            "attempt('attributes', lambda: syscall(442, -100, b'/usr', 0, bytes(32), 32))\n"
            "for line in open('/proc/self/mountinfo'):\n"
            "    place, options = line.split()[4], line.split()[5].split(',')\n"
            "    writable = place.startswith(('/dev', '/proc')) or place == os.getcwd()\n"
            "    if 'nosuid' not in options or not (writable or 'ro' in options): print('BREACH', line)"
        )

    def test_no_namespace_capability_or_identity_can_be_gained(self) -> None:
        said = self.attack(
            "for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x2000000, 0x80):\n"
            "    attempt('unshare %x' % flag, lambda: syscall(272, flag))\n"
            "    attempt('clone %x' % flag, lambda: syscall(56, flag | 17, 0, 0, 0, 0))\n"
            "attempt('clone3', lambda: syscall(435, bytes(88), 88))\n"
            "attempt('setuid', lambda: (os.setuid(0), 'BREACH'))\nattempt('setgid', lambda: (os.setgid(0), 'BREACH'))\n"
            "attempt('groups', lambda: (os.setgroups([0]), 'BREACH'))\n"
            "attempt('su', lambda: 'BREACH' if 'uid=0' in os.popen('su -c id 2>&1').read() else 'no')\n"
            "attempt('set-uid', lambda: (os.chmod(open('s', 'w').name, 0o6777), 'left')[1])\n"
            "print([line for line in open('/proc/self/status') if line[:3] in ('Cap', 'NoN', 'Sec', 'Uid', 'Gro')])"
        )
        self.assertEqual(set(re.findall(r"Cap\w+:\\t(\w+)", said)), {"0" * 16})
        self.assertIn("NoNewPrivs:\\t1", said)
        self.assertIn("Seccomp:\\t2", said)

    def test_the_kernels_doors_are_shut(self) -> None:
        calls = (
            "321, 323, 425, 250, 298, 319, 29, 68, 64, 240, 135, 246, 175, 313, 169, 103, 304, 300, 433, 447, 462, "
            "278, 188, 189, 190, 253, 294, 444, 317"
        )
        said = self.attack(
            f"for number in ({calls}):\n    attempt(number, lambda: syscall(number, *[bytes(120)] + [0] * 4))\n"
            "attempt('tiocsti', lambda: syscall(16, 0, 0x5412, b'x'))"
        )
        if platform.machine() == "x86_64":
            answers = {line.split(" => ")[1] for line in said.splitlines() if " => " in line}
            self.assertEqual(answers, {"EPERM", "ENOSYS"})

    def test_who_watches_a_program_has_its_turn_first(self) -> None:
        run = self.job("import os\nprint(os.getpriority(0, 0) - os.getpriority(0, 1))")
        self.assertEqual(run.stdout, b"10\n", run)

    def test_who_stops_what_watches_it_is_ended(self) -> None:
        """Where it can be stopped at all. Who lets it go on at once has stopped it too."""
        for after in ("", "        os.kill(pid, 18)\n"):
            run = self.job(
                "import os, time\nothers = [int(name) for name in os.listdir('/proc') if name.isdigit()]\n"
                "for pid in others:\n    try:\n        if pid != os.getpid(): os.kill(pid, 19)\n"
                f"{after}    except OSError: pass\ntime.sleep(0.5)\nfor i in range(4):\n    if os.fork() == 0: break\n"
                "a = bytearray(b'x') * (90 << 20)\ntime.sleep(30)",
            )
            self.assertIn(
                (run.reason, run.error and run.error[:16]), {("memory", None), ("signal", "what watched the")}
            )

    def test_what_the_kernel_keeps_for_a_program_is_counted_as_its_memory(self) -> None:
        """Data on the way to sockets that nobody reads: of senders that are closed, to connections that nobody has
        accepted, and to as many sockets as all processes may have open."""
        start = "import os, socket, time\nkept, data = [], bytes(150_000)\n"
        full = "    try:\n        while True: c.send(data)\n    except BlockingIOError: c.close()\n"
        senders = (
            "def one(i):\n    r = socket.socket(1, 2); r.bind('\\0%d' % i); kept.append(r)\n"
            "    for j in range(10):\n        c = socket.socket(1, 2); c.setblocking(False)\n"
            "        c.connect('\\0%d' % i)\n        try: c.send(data)\n"
            "        except BlockingIOError: pass\n        c.close()\n"
            "for i in range(60): one(i)\n"
        )
        backlog = (
            "s = socket.socket(1); s.bind('\\0s'); s.listen(4096)\nfor i in range(4000):\n"
            f"    c = socket.socket(1); c.setblocking(False); c.connect('\\0s')\n{full}"
        )
        pairs = (
            "for i in range(28):\n    if os.fork() == 0: break\n"
            "for i in range(25):\n    pair = socket.socketpair(); kept.append(pair)\n    for c in pair:\n"
            "        c.setblocking(False)\n        try:\n            while True: c.send(data)\n"
            "        except BlockingIOError: pass\n"
        )
        for code in (senders, backlog, pairs):
            run = self.job(f"{start}{code}time.sleep(30)", cpu_s=20.0, open_files=80, memory_bytes=192 * MIB)
            self.assert_ended(run, "memory")

    def test_pairs_of_sockets_and_listeners_are_of_use_and_cannot_be_made_larger(self) -> None:
        said = self.attack(
            "import asyncio, multiprocessing\n"
            "async def main():\n"
            "    async def serve(reader, writer): writer.write(await reader.read(4)); writer.close()\n"
            "    async with await asyncio.start_unix_server(serve, 's'):\n"
            "        reader, writer = await asyncio.open_unix_connection('s')\n"
            "        writer.write(b'pong'); print(await reader.read())\n"
            "asyncio.run(main())\na, b = multiprocessing.Pipe(); a.send('ping'); print(b.recv())\n"
            "for option in (7, 26, 32, 33, 50):\n    for s in (*socket.socketpair(), socket.socket(1)):\n"
            "        attempt(option, lambda: (s.setsockopt(1, option, bytes([0, 0, 64, 0] * 4)), 'BREACH'))"
        )
        self.assertIn("b'pong'\nping\n", said)

    def test_the_number_of_files_is_bounded(self) -> None:
        for folder in ("/work", "/dev/shm"):
            run = self.job(
                "import os\nn = 0\ntry:\n    while True:\n"
                f"        os.close(os.open('{folder}/%d' % n, os.O_CREAT | os.O_WRONLY, 0o600)); n += 1\n"
                "except OSError: print(n)",
                cpu_s=20.0,
            )
            if run.reason != "memory":
                self.assert_ended(run, "exit", 0)
                self.assertLess(int(run.stdout), 5000)

    def test_page_tables_are_memory_too(self) -> None:
        """A program of JavaScript has no limit of address space, nor has what it starts."""
        reads = (
            "import mmap\na = []\nwhile True:\n    m = mmap.mmap(-1, 1 << 32, 34, 1); a.append(m)\n"
            "    for at in range(0, 1 << 32, 1 << 21): m[at]"
        )
        code = f"require('child_process').spawn('python3', ['-c', {reads!r}]).on('error', e => console.log(e.code))"
        run = self.job(code, "javascript", cpu_s=20.0)
        if run.stdout == b"ENOENT\n" or (run.error and "there is no node" in run.error):
            self.skipTest("there is no node, or no python3")
        self.assert_ended(run, "memory")

    def test_descriptors_of_the_gateway_are_not_there(self) -> None:
        with open(self.secret, "rb") as file:
            os.set_inheritable(file.fileno(), True)  # as a careless gateway might have one
            run = self.job(
                "import os\nfor fd in range(3, 1024):\n    try: print('BREACH', fd, os.fstat(fd))\n"
                "    except OSError: pass\nprint('done')"
            )
            self.assertEqual(run.stdout, b"done\n", run)

    def test_an_answer_cannot_be_forged(self) -> None:
        fake = '{"nonce": "%032d", "reason": "exit", "exit_code": 0, "stdout": 0, "stderr": 0, "report": 0}'
        run = self.job(
            f"import os\nfake = b'{fake}\\\\n' % 0\nfor fd in range(1024):\n    try: os.write(fd, fake)\n"
            "    except OSError: pass\nfor pid in range(1, 40):\n"
            "    for fd in range(64):\n        try: open('/proc/%d/fd/%d' % (pid, fd), 'wb', 0).write(fake)\n"
            "        except OSError: pass\nos._exit(7)"
        )
        self.assert_ended(run, "exit", 7)
        self.assertIn(b'"reason": "exit"', run.stdout)
        self.assertEqual(run.report, b"")

    def test_the_nonce_is_not_in_the_jobs_memory(self) -> None:
        nonce, decoy = secrets.token_hex(16), secrets.token_hex(16)
        scan = (
            # Several, apart from each other: one may lie across the ends of two reads, or beside other digits.
            f"decoys = [bytearray(b' {decoy} ') for _ in range(9)]\nimport gc, re, sys\nhits = set()\n"
            # PyPy moves what is young: from where the scan has yet to come to where it has been.
            "gc.collect()\n"
            "for line in open('/proc/self/maps'):\n"
            "    a, b = [int(x, 16) for x in line.split()[0].split('-')]\n"
            f"    if 'r' in line.split()[1] and b - a < {SCANNED_MAX}:\n        try:\n"
            "            with open('/proc/self/mem', 'rb', 0) as f:\n                f.seek(a)\n"
            "                for i in range(a, b, 1 << 20):\n"
            "                    data = f.read(min(1 << 20, b - i))\n"
            "                    hits.update(re.findall(rb'(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])', data))\n"
            "        except (OSError, ValueError, OverflowError, MemoryError): pass\n"
            "print(*[hit.decode() for hit in hits][:1500])"
        )
        with mock.patch("gateway.verify.sandbox.channel.secrets.token_hex", return_value=nonce):
            run = self.job(scan, memory_bytes=512 * MIB, cpu_s=60.0)
        self.assert_ended(run, "exit", 0)
        self.assertIn(decoy.encode(), run.stdout)
        self.assertNotIn(nonce.encode(), run.stdout)

    def test_an_answer_without_the_nonce_is_none(self) -> None:
        with mock.patch("gateway.verify.sandbox.channel.hmac.compare_digest", return_value=False):
            run = self.job("print(1)")
        self.assert_ended(run, "setup")
        self.assertEqual(run.stdout, b"")

    def test_nothing_goes_from_run_to_run(self) -> None:
        spoil = (
            "import builtins, json, os, random, signal, socket, sys\nbuiltins.len = None; sys.modules['re'] = None\n"
            "sys.path[:] = ['/evil']; os.environ['X'] = 'LEAKED'; random.seed(1); json.loads = None; os.umask(0)\n"
            "[os.dup(1) for i in range(9)]; open('left', 'w'); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "os.chdir('/'); socket.x = 'LEAKED'; sys.setrecursionlimit(99)\n"
        )
        look = (
            "import json, os, random, re, signal, socket, sys\nprint(random.random())\n"
            "print(os.environ.get('X'), os.listdir(), len(os.listdir('/proc/self/fd')), hasattr(socket, 'x'),\n"
            "'/evil' in sys.path, json.loads('1'), signal.getsignal(15), sys.getrecursionlimit() > 500, os.umask(0))"
        )
        before = self.job(look)
        for _ in range(3):
            self.assert_ended(self.job(spoil), "exit", 0)
        after = [self.job(look) for _ in range(3)]
        self.assert_ended(before, "exit", 0)
        self.assertEqual({run.stdout.splitlines()[1] for run in after}, {before.stdout.splitlines()[1]})
        self.assertEqual(len({run.stdout.splitlines()[0] for run in (before, *after)}), 4)

    def test_many_jobs_at_once_get_their_own_answers(self) -> None:
        outputs: list[bytes] = [b""] * 12

        def one(index: int) -> None:
            outputs[index] = self.job(f"print({index})").stdout

        threads = [threading.Thread(target=one, args=(index,)) for index in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(outputs, [b"%d\n" % index for index in range(12)])

    def test_javascript_and_bash_see_no_more(self) -> None:
        read = f"require('fs').readFileSync({str(self.secret)!r}, 'utf8')"
        read = f"try {{ console.log({read}) }} catch (e) {{ console.log('no') }}"
        run = self.job(read, "javascript", memory_bytes=300 * MIB)
        if not (run.error and "there is no node" in run.error):
            self.assertEqual(run.stdout, b"no\n", run)
        run = self.job(
            f"cat {self.secret} /etc/shadow; echo 0 > /usr/x; (echo > /dev/tcp/127.0.0.1/22) ; echo done", "bash"
        )
        self.assertEqual(run.stdout, b"done\n", run)
        self.assertNotIn(SECRET.encode(), run.stderr)
