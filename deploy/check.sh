#!/bin/sh
# Checks the files of this folder with whichever of the tools is there: helm, kubernetes-validate and promql-parser (PyPI),
# hadolint, systemd-analyze. Says what it skipped. HELM, PYTHON, .. name other commands.
set -eu
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
passed=0 failed=0 skipped=0
try() { # NAME COMMAND..
  name=$1; shift
  if "$@" >"$out/log" 2>&1; then passed=$((passed + 1)); echo "ok    $name"
  else failed=$((failed + 1)); echo "FAIL  $name"; sed 's/^/      /' "$out/log"; fi
}
skip() { skipped=$((skipped + 1)); echo "skip  $1: $2 is not there"; }
has() { command -v "$1" >/dev/null 2>&1; }
HELM=${HELM:-helm} PYTHON=${PYTHON:-python3} VALIDATE=${VALIDATE:-kubernetes-validate} HADOLINT=${HADOLINT:-hadolint}

cat >"$out/all.yaml" <<'VALUES'
models: ["gemma3:270m", "small=/models/a.gguf"]
args: ["--parallel", "32", "--metrics-compat", "vllm"]
env: [{name: QUARREL_LOG, value: debug}]
auth: {keys: ["0123456789abcdef", "fedcba9876543210"]}
config: |
  parallel = 8
  [serve]
  keep-alive = 30
tls: {secret: server-tls}
autoscaling: {enabled: true, maxReplicas: 8}
persistence: {storageClass: fast}
volumes: [{name: models, persistentVolumeClaim: {claimName: models, readOnly: true}}]
volumeMounts: [{name: models, mountPath: /models, readOnly: true}]
ingress: {enabled: true, host: models.example, tlsSecret: tls, className: nginx, annotations: {a: b}}
serviceMonitor: {enabled: true, labels: {release: prometheus}, tlsConfig: {serverName: models.example}}
networkPolicy: {enabled: true, from: [{namespaceSelector: {}}]}
podAnnotations: {a: b}
podLabels: {a: b}
nodeSelector: {a: b}
tolerations: [{operator: Exists}]
priorityClassName: high
VALUES
cat >"$out/least.yaml" <<'VALUES'
auth: {existingSecret: keys}
persistence: {enabled: false}
podDisruptionBudget: {enabled: false}
serviceAccount: {create: false}
service: {sessionAffinity: None, type: LoadBalancer}
VALUES
echo '{}' >"$out/plain.yaml"
echo 'replica: 2' >"$out/misspelt.yaml"
if has "$HELM"; then
  try "helm lint" "$HELM" lint --strict helm/quarrel
  for values in plain all least; do
    try "helm template, $values" sh -c "$HELM template test helm/quarrel -f '$out/$values.yaml' >'$out/$values.out'"
    # A ServiceMonitor is Prometheus' own kind, which Kubernetes' schemas do not have.
    if ! has "$VALIDATE"; then skip "schemas, $values" "$VALIDATE"
    else try "schemas, $values" sh -c "awk 'BEGIN{RS=\"---\n\"} !/kind: ServiceMonitor/{print \"---\n\" \$0}' '$out/$values.out' >'$out/$values.k8s' && $VALIDATE -k 1.33 '$out/$values.k8s'"; fi
  done
  try "a misspelt value is refused" sh -c "! $HELM template test helm/quarrel -f '$out/misspelt.yaml'"
else skip "the chart" "$HELM"; fi
if has "$HADOLINT"; then try "hadolint" "$HADOLINT" Dockerfile; else skip "Dockerfile" "$HADOLINT"; fi
if has systemd-analyze; then
  sed 's#/usr/local/bin/quarrel#/bin/true#' quarrel.service >"$out/quarrel.service"
  try "systemd-analyze verify" sh -c "systemd-analyze verify '$out/quarrel.service' 2>&1 | { ! grep . ; }"
  try "exposure below 2" sh -c "systemd-analyze security --offline=true --threshold=20 '$out/quarrel.service'"
else skip "the unit" systemd-analyze; fi
if ! "$PYTHON" -c 'import promql_parser' 2>/dev/null; then skip "the dashboard's queries" promql-parser
else try "the dashboard's queries" "$PYTHON" - <<'CHECK'
import json, re, promql_parser
def panels(of):
    for p in of:
        yield p
        yield from panels(p.get("panels", []))
dashboard = json.load(open("grafana/quarrel.json"))
found = [(p["title"], t["expr"]) for p in panels(dashboard["panels"]) for t in p.get("targets", [])]
for title, expr in found:
    try: promql_parser.parse(expr.replace("$__rate_interval", "1m"))
    except Exception as e: raise SystemExit(f"{title}: {expr}: {e}")
ids = [p["id"] for p in panels(dashboard["panels"])]
assert len(ids) == len(set(ids)) and len(found) > 20
CHECK
fi
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
