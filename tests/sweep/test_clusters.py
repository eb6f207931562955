"""Clusters without one: what would be asked of them; and a sweep through Slurm, played by two shell scripts."""

import asyncio
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster, Security

from acertlab.sweep import clusters, executor as sweep
from tests.helpers.notebooks import ROOT, wait_for, write_notebook

TRIVIAL = [
    'what = "a"\nrun_dir = "" ',
    "from pathlib import Path\nPath(run_dir, 'result.json').write_text('{\"acc\": 0.5}')",
]


def test_a_slurm_job_has_one_gpu_one_thread_and_tls(tmp_path: Path) -> None:
    async def script() -> str:
        cluster = clusters.slurm(
            0,
            queue="gpu",
            account="me",
            cpus=6,
            memory="20GB",
            walltime="02:30:00",
            shared=tmp_path / "keys",
            asynchronous=True,
        )
        try:
            return cluster.job_script()
        finally:
            await cluster.close()

    job = asyncio.run(script())
    for line in ("-p gpu", "-A me", "--cpus-per-task=6", "-t 02:30:00", "--gres=gpu:1"):
        assert f"#SBATCH {line}\n" in job
    (command,) = (line for line in job.splitlines() if "distributed.cli.dask_worker" in line)
    assert "--death-timeout 600 " in command
    assert "--nthreads 1 " in command and "--nworkers" not in command
    assert f"--tls-key {tmp_path}/keys/key.pem" in command and "CUDA_VISIBLE_DEVICES" not in job  # Slurm's to set


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts shell scripts in the place of sbatch and scancel."""

    def put(sbatch: str, scancel: str) -> None:
        played = tmp_path / "bin"
        played.mkdir()
        for name, script in (("sbatch", sbatch), ("scancel", scancel)):
            (played / name).write_text(f"#!/bin/sh\n{script}\n")
            (played / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(played), prepend=":")

    return put


def test_a_sweep_through_sbatch(tmp_path: Path, slurm_commands: Callable[[str, str], None]) -> None:
    slurm_commands(
        # as Slurm, it keeps the script: dask-jobqueue removes its file as soon as sbatch has answered
        f"cp $1 {tmp_path}/job.sh\n"
        f"PYTHONPATH={ROOT} CUDA_VISIBLE_DEVICES=7 setsid sh {tmp_path}/job.sh > {tmp_path}/job.log 2>&1 &\n"
        f"echo $! > {tmp_path}/job\necho Submitted batch job $!",
        "kill -- -$1",
    )
    notebook = write_notebook(tmp_path / "trivial.ipynb", [TRIVIAL[0], TRIVIAL[1].replace("0.5", SEES_GPU_7)])
    spec = {"notebook": str(notebook), "out": str(tmp_path / "out"), "grid": {"what": ["a", "b"]}}
    with clusters.slurm(1, shared=tmp_path, memory="1GB", job_directives_skip=["--mem"]) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        table = sweep.run(spec, scheduler=cluster, show=False)
    assert (table.state == "done").all() and table.acc.tolist() == [1, 1]
    group = ["pgrep", "-g", (tmp_path / "job").read_text().strip()]
    wait_for(lambda: subprocess.run(group, stdout=subprocess.DEVNULL).returncode == 1, "the job is cancelled")


def test_jobs_that_do_not_come_up_are_named(
    tmp_path: Path, slurm_commands: Callable[[str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    slurm_commands("echo Submitted batch job 4242", "true")
    with clusters.slurm(1, shared=tmp_path) as cluster, Client(cluster) as client:
        wait_for(lambda: any(job.job_id for job in cluster.workers.values()), "the job is submitted")
        absence = sweep._Absence(client)
        absence.note([], 2)  # not yet
        absence._since -= 100
        absence.note([], 2)
        absence.note([], 2)  # not again so soon
    (said,) = (record.getMessage() for record in caplog.records if record.name == sweep.log.name)
    assert f"no worker at {cluster.scheduler_address} for 100 s; jobs that wait for one: 2; " in said
    assert "SLURMCluster was asked for 1, as jobs 4242: are they queued" in said


SEES_GPU_7 = "' + str(int(__import__('os').environ.get('CUDA_VISIBLE_DEVICES') == '7')) + '"


def test_ssh_workers_see_a_gpu_each() -> None:
    spec = clusters.ssh_spec(["login", "node1", "node2"], gpus=2, python="/opt/python", connect={"username": "me"})
    assert spec["scheduler"]["options"] == {
        "address": "login",
        "connect_options": {"username": "me"},
        "remote_python": "/opt/python",
        "kwargs": {"protocol": "tls://", "port": 0, "dashboard": False},
    }
    assert list(spec["workers"]) == ["node1-0", "node1-1", "node2-0", "node2-1"]
    options = [worker["options"] for worker in spec["workers"].values()]
    assert [o["address"] for o in options] == ["node1", "node1", "node2", "node2"]
    assert [o["kwargs"]["env"]["CUDA_VISIBLE_DEVICES"] for o in options] == ["0", "1", "0", "1"]
    assert all(o["kwargs"]["nthreads"] == 1 and o["worker_class"] == "distributed.Nanny" for o in options)
    for part in (spec["scheduler"], *spec["workers"].values()):
        part["cls"](scheduler="tls://a:1", **part["options"]) if "worker_class" in part["options"] else part["cls"](
            **part["options"]
        )
    without = clusters.ssh_spec(["login", "node1"])["workers"]
    assert list(without) == ["node1-0"] and "env" not in without["node1-0"]["options"]["kwargs"]
    with pytest.raises(ValueError, match=r"hosts = \['alone'\]: accepted is the scheduler's host, then at least one"):
        clusters.ssh_spec(["alone"])


def test_kubernetes_pods_have_a_gpu_and_the_volume_the_scheduler_neither() -> None:
    pytest.importorskip("dask_kubernetes", reason="dask-kubernetes is not installed: pip install 'acertlab[cluster]'")
    spec = clusters.kubernetes_spec("registry/acertlab:1", 8, claim="runs", mount="/runs")
    assert (spec["kind"], spec["metadata"]["name"]) == ("DaskCluster", "acertlab")
    worker, scheduler = spec["spec"]["worker"], spec["spec"]["scheduler"]
    (container,) = worker["spec"]["containers"]
    assert worker["replicas"] == 8 and container["image"] == "registry/acertlab:1"
    assert container["args"][:4] == ["dask", "worker", "--nthreads", "1"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert container["volumeMounts"][0]["name"] == worker["spec"]["volumes"][0]["name"]
    assert container["volumeMounts"][0]["mountPath"] == "/runs"
    assert worker["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "runs"}
    assert not scheduler["spec"]["containers"][0]["resources"]
    assert scheduler["service"]["type"] == "ClusterIP"  # not to be reached from outside


def test_certificates_are_kept_private_and_let_nobody_else_in(tmp_path: Path) -> None:
    security = clusters.certificates(tmp_path / "keys")
    files = sorted((tmp_path / "keys").iterdir())
    assert [path.name for path in files] == ["ca.pem", "cert.pem", "key.pem"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    before = [path.read_bytes() for path in files]
    assert clusters.certificates(tmp_path / "keys").tls_client_key == str(tmp_path / "keys" / "key.pem")
    assert [path.read_bytes() for path in files] == before
    with dask.config.set(clusters.tls_config(security)):
        from_config = Security()
    assert from_config.require_encryption and from_config.get_tls_config_for_role("worker") == (
        security.get_tls_config_for_role("worker")
    )
    local = {"n_workers": 0, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "threads_per_worker": 1}
    with LocalCluster(protocol="tls://", security=security, **local) as cluster:
        with Client(cluster.scheduler_address, security=security) as client:
            assert client.status == "running"
        with pytest.raises(OSError), Client(cluster.scheduler_address, security=Security.temporary(), timeout=2):
            pass


def test_a_gpu_a_worker_on_this_machine() -> None:
    if sys.platform == "win32":
        pytest.skip("no CUDA_VISIBLE_DEVICES to look at")
    with sweep.local_cluster(0, ["4", "5"]) as cluster:
        for _ in range(3):  # what would be started
            cluster.worker_spec.update(cluster.new_worker_spec())
        seen = [spec["options"]["env"]["CUDA_VISIBLE_DEVICES"] for spec in cluster.worker_spec.values()]
        cluster.worker_spec.clear()
    assert seen == ["4", "5", "4"]
