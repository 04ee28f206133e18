"""The samples for containers, Kubernetes and HAProxy: read, looked at, and their configurations checked by the daemon."""

import re
import shutil

import pytest
import yaml

from support.system import REPO, give_to_daemon, run

pytestmark = pytest.mark.ours

MANIFESTS = sorted((REPO / "etc/kubernetes").glob("*.yaml"))
KINDS = {"ConfigMap": "v1", "Secret": "v1", "Service": "v1", "PodDisruptionBudget": "policy/v1", "StatefulSet": "apps/v1",
         "Deployment": "apps/v1"}


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_are_whole(path):
    found = documents(path)
    names = {(d["kind"], d["metadata"]["name"]) for d in found}
    assert len(names) == len(found)
    for document in found:
        assert document["apiVersion"] == KINDS[document["kind"]]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])
    for workload in (d for d in found if d["kind"] in ("StatefulSet", "Deployment")):
        spec = workload["spec"]
        pod = spec["template"]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items() and spec["replicas"] > 1
        if "serviceName" in spec:
            assert ("Service", spec["serviceName"]) in names
        volumes = {v["name"]: v for v in pod["volumes"]}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in names
        everybody = pod["containers"] + pod.get("initContainers", [])
        ports = {p["name"] for c in everybody for p in c.get("ports", [])}
        for container in everybody:
            assert {m["name"] for m in container.get("volumeMounts", [])} <= set(volumes)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe in container:
                    assert container[probe]["tcpSocket"]["port"] in ports
        for selected in (d for d in found if d["kind"] in ("Service", "PodDisruptionBudget")):
            selector = selected["spec"]["selector"]
            assert selector.get("matchLabels", selector).items() <= labels.items()
            for port in selected["spec"].get("ports", []):
                assert port["targetPort"] in ports


def test_every_replica_is_a_peer():
    found = documents(REPO / "etc/kubernetes/pgbouncer.yaml")
    ini = next(d for d in found if d["kind"] == "ConfigMap")["data"]["pgbouncer.ini"]
    replicas = next(d for d in found if d["kind"] == "StatefulSet")["spec"]["replicas"]
    peers = re.findall(r"^(\d+) = host=pgbouncer-(\d+)\.pgbouncer-peers$", ini, re.M)
    assert peers == [(str(n + 1), str(n)) for n in range(replicas)]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_their_configurations_are_good(path, binary, make_pooler):
    directory = make_pooler(start=False).dir
    found = documents(path)
    ini = next(d for d in found if d["kind"] == "ConfigMap")["data"]["pgbouncer.ini"]
    userlist = next(d for d in found if d["kind"] == "Secret")["stringData"]["userlist.txt"]
    for name, text in (("users", userlist), ("peer.ini", "peer_id = 1\n"),
                       ("k.ini", ini.replace("/etc/pgbouncer-secret/userlist.txt", "users").replace("/run/pgbouncer/", ""))):
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
        give_to_daemon(directory / name)
    done = run([binary.path, "--check", "k.ini"], check=False, switch_user=True, cwd=directory)
    # the sample's password is there to be replaced by a secret
    rest = [line for line in done.stdout.splitlines() if "is kept in plain text" not in line]
    assert done.returncode == 0 and rest == [], done.stdout + done.stderr


def test_the_haproxy_sample_asks_what_a_pooler_answers(pooler):
    text = (REPO / "etc/haproxy/haproxy.cfg").read_text()
    question = bytes.fromhex(re.search(r"send-binary (\w+)", text)[1])
    with pooler.wire() as wire:
        wire.sock.sendall(question)
        assert re.match(rb"^(S|N)$", wire.sock.recv(1))
    assert "rbinary ^(53|4e)" in text
    if shutil.which("haproxy"):
        run(["haproxy", "-c", "-f", REPO / "etc/haproxy/haproxy.cfg"])


def test_the_processes_of_the_scaling_page_have_good_files(binary, make_pooler):
    """The file that the page shows, with directories of the test in the place of /run and /etc."""
    directory = make_pooler(start=False).dir
    text = (REPO / "docs/scaling.md").read_text()
    shown = re.search(r"one port, several processes\n\n((?:    .*\n)+)", text)[1]
    ini = "\n".join(line[4:] for line in shown.splitlines())
    for name in ("a", "b"):
        (directory / f"pgbouncer-{name}").mkdir()
    files = {"a.ini": ini.replace("/run/", f"{directory}/").replace("/etc/pgbouncer/", ""),
             "common.ini": "auth_file = users\n[databases]\np0 = host=127.0.0.1\n", "users": '"u" "md50123456789abcdef0123456789abcdef"\n'}
    for name, content in files.items():
        (directory / name).write_text(content)
        (directory / name).chmod(0o600)
        give_to_daemon(directory / name)
    done = run([binary.path, "--check", "a.ini"], check=False, switch_user=True, cwd=directory)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
