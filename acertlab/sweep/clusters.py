"""Workers for a sweep on other machines: Slurm, SSH, Kubernetes. `pip install 'acertlab[cluster]'`; one worker a GPU.

    from acertlab import sweep
    from acertlab.sweep import clusters

    if __name__ == "__main__":
        with clusters.slurm(8, queue="gpu", shared="~/.acertlab") as cluster:      # eight jobs of one GPU
            sweep.run("sweep.yaml", scheduler=cluster)

        with clusters.ssh(["login", "node1", "node2"], gpus=4, shared="~/.acertlab") as cluster:
            sweep.run("sweep.yaml", scheduler=cluster)

        from dask_kubernetes.operator import KubeCluster                           # needs Dask's operator there
        spec = clusters.kubernetes_spec("registry/acertlab:0.1.0", 8, claim="runs", mount="/runs")
        with KubeCluster(custom_cluster_spec=spec) as cluster:                     # in a pod with the same mount
            sweep.run("sweep.yaml", scheduler=cluster, out="/runs/sweep")

Whoever reaches a Dask scheduler can run code there, so Slurm and SSH workers talk TLS, with certificates of your own;
on Kubernetes the scheduler is reached inside the cluster only, which a NetworkPolicy should narrow. Every machine needs
this package in the same version, and the sweep's folder and the datasets under the same paths. A job that ends at its
time limit costs the epoch that it was in: the job goes on elsewhere, twice, and else in the next sweep.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask import config
from distributed import Security, SpecCluster
from distributed.deploy import ssh as dask_ssh

from acertlab._optional import need
from acertlab.sweep.job import START_TIMEOUT

if TYPE_CHECKING:
    from dask_jobqueue.slurm import SLURMCluster

TLS_FILES = [(role, what) for role in ("client", "scheduler", "worker") for what in ("cert", "key")]


def slurm(
    jobs: int,
    *,
    queue: str | None = None,
    gpus: int = 1,
    cpus: int = 4,
    memory: str = "16GB",
    walltime: str = "12:00:00",
    shared: str | Path,
    **options: Any,
) -> "SLURMCluster":
    """A cluster of Slurm jobs, each a worker with one GPU that Slurm chooses (it sets CUDA_VISIBLE_DEVICES), or with 0.

    ``.scale(n)`` and ``.adapt(maximum=n)`` change how many ``jobs`` are submitted. cpus, memory and walltime are of a
    job, in Slurm's words; the folder ``shared``, which all nodes see, takes the certificates, readable by you alone;
    ``options`` are further ones of `dask_jobqueue.SLURMCluster`, as account or job_script_prologue.
    """
    need("cluster", "clusters.slurm", "dask_jobqueue")
    from dask_jobqueue.slurm import SLURMCluster

    # else 60 seconds: a job whose worker is not up by then ends, and nobody submits it again
    options = {"death_timeout": START_TIMEOUT} | options
    return SLURMCluster(
        n_workers=jobs,
        queue=queue,
        cores=1,
        processes=1,
        memory=memory,
        job_cpu=cpus,
        walltime=walltime,
        job_extra_directives=[f"--gres=gpu:{gpus}"] if gpus else [],
        protocol="tls://",
        security=certificates(shared),
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        **options,
    )


def ssh(hosts: Sequence[str], *, gpus: int = 0, shared: str | Path, **options: Any) -> SpecCluster:
    """A scheduler on the first host and workers on the others, started through SSH; see `ssh_spec`."""
    security = certificates(shared)
    config.set(tls_config(security))  # Dask hands its configuration on to the processes that it starts by SSH
    return SpecCluster(**ssh_spec(hosts, gpus=gpus, **options), name="acertlab", security=security)


def ssh_spec(
    hosts: Sequence[str], *, gpus: int = 0, python: str | None = None, connect: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What `distributed.SpecCluster` starts: as `distributed.SSHCluster`, with a GPU for every worker.

    ``hosts``: the scheduler's, then the workers', on each of which so many workers see one of ``gpus`` each (0: one
    worker without). ``python`` is the interpreter over there (None: the path of this one); ``connect`` has options of
    asyncssh.connect, as username or known_hosts.
    """
    if len(hosts) < 2:
        raise ValueError(f"hosts = {list(hosts)!r}: accepted is the scheduler's host, then at least one for workers")
    common = {"connect_options": connect or {}, "remote_python": python}
    workers = {}
    for host in hosts[1:]:
        for gpu in range(gpus or 1):
            kwargs = {"nthreads": 1, "memory_limit": 0, "dashboard": False}
            kwargs |= {"env": {"CUDA_VISIBLE_DEVICES": str(gpu)}} if gpus else {}
            options = common | {"address": host, "worker_class": "distributed.Nanny", "kwargs": kwargs}
            workers[f"{host}-{gpu}"] = {"cls": dask_ssh.Worker, "options": options}
    scheduler = common | {"address": hosts[0], "kwargs": {"protocol": "tls://", "port": 0, "dashboard": False}}
    return {"workers": workers, "scheduler": {"cls": dask_ssh.Scheduler, "options": scheduler}}


def kubernetes_spec(
    image: str, workers: int, *, claim: str, mount: str, gpus: int = 1, name: str = "acertlab"
) -> dict[str, Any]:
    """The DaskCluster resource for `dask_kubernetes.operator.KubeCluster(custom_cluster_spec=...)`.

    Of a container ``image`` with this package, and so many pods with a worker each, which sees 1 or 0 ``gpus``. They
    see the persistent volume of ``claim``, which holds the sweep's folder and the datasets, at ``mount``.
    """
    need("cluster", "clusters.kubernetes_spec", "dask_kubernetes")
    from dask_kubernetes.operator import make_cluster_spec  # pyright: ignore[reportMissingImports]

    spec = make_cluster_spec(
        name, image=image, n_workers=workers, env={"OMP_NUM_THREADS": "1"}, worker_command="dask worker --nthreads 1"
    )
    pod = spec["spec"]["worker"]["spec"]  # the scheduler needs neither the GPU nor the volume
    pod["volumes"] = [{"name": "sweep", "persistentVolumeClaim": {"claimName": claim}}]
    (container,) = pod["containers"]
    container["volumeMounts"] = [{"name": "sweep", "mountPath": mount}]
    container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    return spec


def certificates(folder: str | Path) -> Security:
    """Self-signed TLS files for one cluster: ca.pem, cert.pem and key.pem; made unless they are there.

    They also serve a scheduler of your own: `dask scheduler --protocol tls --tls-ca-file ca.pem --tls-cert cert.pem
    --tls-key key.pem`, workers with the same options, and `acertlab sweep ... --tls ca.pem cert.pem key.pem`.
    """
    folder = Path(folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {"tls_ca_file": folder / "ca.pem", "cert": folder / "cert.pem", "key": folder / "key.pem"}
    if not all(path.is_file() for path in files.values()):
        made = Security.temporary()
        texts = {"tls_ca_file": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
        for name, path in files.items():
            path.unlink(missing_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(texts[name])
    roles = {f"tls_{role}_{what}": str(files[what]) for role, what in TLS_FILES}
    return Security(tls_ca_file=str(files["tls_ca_file"]), require_encryption=True, **roles)


def tls_config(security: Security) -> dict[str, Any]:
    """Dask's configuration that makes every process use these files."""
    config = {"distributed.comm.tls.ca-file": security.tls_ca_file, "distributed.comm.require-encryption": True}
    for role, what in TLS_FILES:
        config[f"distributed.comm.tls.{role}.{what}"] = getattr(security, f"tls_{role}_{what}")
    return config
