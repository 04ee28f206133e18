"""The Kubernetes samples: valid by the schemas of the API, whole in themselves, and their configurations good for the daemon."""

import re
import subprocess

import kubernetes_validate
import pytest
import yaml

from support.system import REPO, give_to_daemon, run

pytestmark = pytest.mark.ours

MANIFESTS = sorted((REPO / "etc/kubernetes").glob("*.yaml"))
API = "1.33"

class Sample:
    """The objects of one file."""

    def __init__(self, path):
        self.objects = list(yaml.safe_load_all(path.read_text()))
        self.by_name = {(o["kind"], o["metadata"]["name"]): o for o in self.objects}
        (self.workload,) = [o for o in self.objects if o["kind"] in ("StatefulSet", "Deployment")]
        self.pod = self.workload["spec"]["template"]["spec"]
        self.labels = self.workload["spec"]["template"]["metadata"]["labels"]
        self.containers = self.pod.get("initContainers", []) + self.pod["containers"]
        (self.pooler,) = [c for c in self.containers if c["image"].startswith("pgusher")]
        self.ini = self.of("ConfigMap")["data"]["pgbouncer.ini"]
        self.userlist = self.of("Secret")["stringData"]["userlist.txt"]

    def of(self, kind):
        (found,) = [o for o in self.objects if o["kind"] == kind]
        return found

    def setting(self, key):
        return re.search(rf"^{key} = ?(.*)$", self.ini, re.M)[1]

    def selects(self, selector):
        return bool(selector) and selector.items() <= self.labels.items()

    def mounted(self, container, path):
        """The volume of the directory of a file, and the name of the file in it."""
        directory, _, name = path.rpartition("/")
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == directory]
        (volume,) = [v for v in self.pod["volumes"] if v["name"] == mount["name"]]
        return volume, name


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def sample(request):
    return Sample(request.param)


def test_the_api_takes_it(sample):
    for document in sample.objects:
        kubernetes_validate.validate(document, API, strict=True)
    broken = {**sample.workload, "spec": {**sample.workload["spec"], "replicsa": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, API, strict=True)


def test_names_lead_somewhere(sample):
    assert len(sample.by_name) == len(sample.objects)
    for kind, name in sample.by_name:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name), f"{kind} {name}"
    for volume in sample.pod["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in sample.by_name
        elif "secret" in volume:
            assert ("Secret", volume["secret"]["secretName"]) in sample.by_name
        else:
            assert volume.keys() - {"name"} == {"emptyDir"}
    volumes = {v["name"] for v in sample.pod["volumes"]}
    mounted = {m["name"] for c in sample.containers for m in c.get("volumeMounts", [])}
    assert mounted == volumes, "each is there, and used"


def test_selectors_select(sample):
    assert sample.selects(sample.workload["spec"]["selector"]["matchLabels"])
    for selecting in (o for o in sample.objects if o["kind"] in ("Service", "PodDisruptionBudget")):
        selector = selecting["spec"]["selector"]
        assert sample.selects(selector.get("matchLabels", selector)), selecting["metadata"]
    for term in sample.pod.get("affinity", {}).get("podAntiAffinity", {}).get("preferredDuringSchedulingIgnoredDuringExecution", []):
        assert sample.selects(term["podAffinityTerm"]["labelSelector"]["matchLabels"])
    budget = sample.by_name.get(("PodDisruptionBudget", "pgbouncer"))
    assert budget is None or budget["spec"]["maxUnavailable"] < sample.workload["spec"]["replicas"]


def test_ports_are_those_of_the_pooler(sample):
    ports = {p["name"]: p["containerPort"] for p in sample.pooler["ports"]}
    assert list(ports.values()) == [int(sample.setting("listen_port"))]
    for service in (o for o in sample.objects if o["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports
    probes = [c[probe] for c in sample.containers for probe in ("startupProbe", "readinessProbe", "livenessProbe") if probe in c]
    for probe in probes:
        (how,) = probe.keys() & {"tcpSocket", "httpGet"}
        assert probe[how]["port"] in ports
    for container in sample.containers:
        for variable in container.get("env", []):
            assert variable["name"] != "PGPORT" or int(variable["value"]) in ports.values()


def test_files_are_mounted_where_they_are_looked_for(sample):
    (path,) = sample.pooler["args"]
    volume, name = sample.mounted(sample.pooler, path)
    assert name in sample.by_name["ConfigMap", volume["configMap"]["name"]]["data"]
    volume, name = sample.mounted(sample.pooler, sample.setting("auth_file"))
    secret = volume["secret"]
    assert name in sample.by_name["Secret", secret["secretName"]]["stringData"]
    # the group alone may read it, which is that of the pooler
    who = {**sample.pod["securityContext"], **sample.pooler["securityContext"]}
    assert secret["defaultMode"] == 0o440 and sample.pod["securityContext"]["fsGroup"] == who["runAsGroup"]
    for included in re.findall(r"^%include (.*)$", sample.ini, re.M):
        volume, name = sample.mounted(sample.pooler, included)
        (maker,) = [c for c in sample.containers if included in " ".join(c.get("command", []))]
        assert "emptyDir" in volume and sample.mounted(maker, included) == (volume, name)
    if directory := sample.setting("unix_socket_dir"):
        assert "emptyDir" in sample.mounted(sample.pooler, f"{directory}/socket")[0], "the rest cannot be written to"


def test_every_replica_is_a_peer(tmp_path):
    sample = Sample(REPO / "etc/kubernetes/pgbouncer.yaml")
    spec, name = sample.workload["spec"], sample.workload["metadata"]["name"]
    peers = dict(re.findall(r"^(\d+) = host=(\S+)$", sample.ini, re.M))
    assert len(peers) == spec["replicas"]
    # a pod has a name of its own in the service of its set alone, and that only if the service has no address
    service = sample.by_name["Service", spec["serviceName"]]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    (maker,) = [c for c in sample.pod["initContainers"] if "peer.ini" in " ".join(c["command"])]
    for number in range(spec["replicas"]):
        program, option, script = maker["command"]
        made = tmp_path / f"{number}.ini"
        subprocess.run([program, option, script.replace("/run/pgbouncer/peer.ini", str(made))], check=True,
                       env={"HOSTNAME": f"{name}-{number}", "PATH": "/bin:/usr/bin"})
        peer_id = re.fullmatch(r"peer_id = (\d+)\n", made.read_text())[1]
        assert peers.pop(peer_id) == f"{name}-{number}.{spec['serviceName']}"
    assert peers == {}


def test_their_configurations_are_good(sample, binary, make_pooler):
    directory = make_pooler(start=False).dir
    for name, text in (("users", sample.userlist), ("peer.ini", "peer_id = 1\n"),
                       ("k.ini", sample.ini.replace("/etc/pgbouncer-secret/userlist.txt", "users").replace("/run/pgbouncer/", ""))):
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
        give_to_daemon(directory / name)
    done = run([binary.path, "--check", "k.ini"], check=False, switch_user=True, cwd=directory)
    # the sample's password is there to be replaced by a secret
    rest = [line for line in done.stdout.splitlines() if "is kept in plain text" not in line]
    assert done.returncode == 0 and rest == [], done.stdout + done.stderr
