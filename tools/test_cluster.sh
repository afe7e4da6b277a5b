#!/usr/bin/env bash
# Run the tests that need a Kubernetes cluster. Usage: tools/test_cluster.sh VENV [PYTEST OPTION...]
#
# The cluster: the one that KUBECONFIG names; else the kit's in ../shared/cluster, where it is; else
# one that kind makes. The images: those that SSSFLOW_TEST_PIPELINE_IMAGE and
# SSSFLOW_TEST_TRITON_IMAGE name, which the nodes can get; else they are built here and loaded into
# the kit's or kind's nodes. A cluster that kind makes here gets KFP from its published manifests, of
# version KFP_VERSION (none if that is empty). What this script starts, it stops.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
shift || true
kit=$PWD/../shared/cluster
kind_name=sssflow-test
begin_s=$SECONDS

say() { printf 'cluster: %4d s  %s\n' $((SECONDS - begin_s)) "$*"; }
fail() { printf 'cluster: %s\n' "$@" >&2; exit 69; }

undo=()
finish() {
    local status=$? i
    for ((i = ${#undo[@]} - 1; i >= 0; i--)); do
        ${undo[i]} || say "${undo[i]} failed"
    done
    say "ended with exit status $status"
}
trap finish EXIT
stop_kit() { "$kit/cluster-down"; }
stop_docker() { "$kit/docker-down"; }
stop_kind() { kind delete cluster --name "$kind_name" && rm -f "$KUBECONFIG"; }

install_kfp() {
    local version=${KFP_VERSION-2.17.0}
    local manifests=github.com/kubeflow/pipelines/manifests/kustomize
    [ -n "$version" ] || return 0
    timeout 600 kubectl apply -k "$manifests/cluster-scoped-resources?ref=$version"
    kubectl wait crd/applications.app.k8s.io --for condition=established --timeout=60s
    timeout 600 kubectl apply -k "$manifests/env/platform-agnostic?ref=$version"
    kubectl -n kubeflow wait deployment --all --for condition=Available --timeout=1200s
    say "KFP $version is up"
}

# Once in many starts the kit's kubelet is there before containerd answers, and ends.
kit_up() {
    "$kit/cluster-up" || {
        say "the kit's cluster did not start; once more" >&2
        "$kit/cluster-down" >&2
        "$kit/cluster-up"
    }
}

# The kit's network lets everything through. kube-router, a process of this machine that knows
# policies alone here, closes on the kit's node what the charts' NetworkPolicies close.
enforce_policies() {
    local router node
    sweep_policies
    command -v ipset >/dev/null || { apt-get update && apt-get install --yes ipset; } >/dev/null 2>&1 || {
        say "NetworkPolicy is not enforced: there is no ipset"
        return 0
    }
    router=$("$venv/bin/python" -c 'from tools.prepare_tests import KUBE_ROUTER as r; print(r.path())') || {
        say "NetworkPolicy is not enforced: there is no kube-router"
        return 0
    }
    node=$(kubectl get nodes --output name)
    mkdir -p build
    "$router" --kubeconfig "$KUBECONFIG" --hostname-override "${node#node/}" --enable-cni=false \
        --run-router=false --run-service-proxy=false --health-port=0 >build/kube-router.log 2>&1 &
    router_pid=$!
    undo+=(stop_policies)
    export SSSFLOW_TEST_POLICIES=enforced
    say "kube-router enforces NetworkPolicy"
}
stop_policies() {
    kill "$router_pid" 2>/dev/null || true
    wait "$router_pid" 2>/dev/null || true
    sweep_policies
}
# Its rules outlive it, and would refuse the pods that get these addresses next.
sweep_policies() {
    local rules set
    rules=$(iptables-save --table filter)
    [[ $rules == *KUBE-ROUTER* ]] || return 0
    grep --invert-match --extended-regexp 'KUBE-(ROUTER|NWPLCY|POD-FW)' <<<"$rules" \
        | iptables-restore --table filter
    for set in $(ipset list --name); do
        [[ ! $set =~ ^(kube-router|KUBE-SRC|KUBE-DST)- ]] || ipset destroy "$set"
    done
}

make_cluster() {
    local exports
    if [ -n "${KUBECONFIG:-}" ]; then
        say "the cluster of KUBECONFIG"
    elif [ -x "$kit/cluster-up" ]; then
        "$kit/cluster-status" >/dev/null 2>&1 || undo+=(stop_kit)
        exports=$(kit_up)
        eval "$exports"
        say "the kit's cluster is up"
        enforce_policies
    elif command -v kind >/dev/null; then
        KUBECONFIG=$(mktemp)
        export KUBECONFIG
        undo+=(stop_kind)
        kind create cluster --name "$kind_name" --wait 180s
        kubectl -n kube-system rollout status deployment/coredns --timeout=120s
        say "kind's cluster is up"
        install_kfp
    else
        fail "there is no cluster to test on." \
            "next: set KUBECONFIG, or install kind and Docker, then run the same command again."
    fi
}

# Where too little is free the kubelet deletes images, and pods wait for them until the tests end.
need_room() {
    local what=$1 folder=$2 needed_gib=$3 free_gib
    [ -d "$folder" ] || return 0
    free_gib=$(($(df --output=avail --block-size=1 "$folder" | tail -n 1) / 1024 ** 3))
    [ "$free_gib" -ge "$needed_gib" ] || fail \
        "$what needs $needed_gib GiB in $folder, where $free_gib GiB are free." \
        "next: free some (\`docker system df\` tells what images take), then run the same command again."
}

make_images() {
    if [ -x "$kit/base-images" ]; then
        docker info >/dev/null 2>&1 || undo+=(stop_docker)
        "$kit/base-images"
        export IMAGE_OPTIONS="${IMAGE_OPTIONS:---network host}"
        export TRITON_IMAGE=${TRITON_IMAGE:-nvcr.io/nvidia/tritonserver:stand-in-py3}
        say "the base images are there"
    fi
    [ -n "$(docker image ls --quiet sssflow/pipeline)" ] \
        || need_room "building the images" "$(docker info --format '{{.DockerRootDir}}')" 12
    IMAGE_PREFIX=sssflow tools/images.sh
    say "the images are built"
}

on_kit() { ctr --address "${CLUSTER_RUN:-/run/local-cluster}/containerd.sock" --namespace k8s.io "$@"; }

# What earlier runs loaded stays on the kit's node, by its tag and by each of its digests.
make_way() {
    local image=$1 old size
    for old in $(on_kit images ls --quiet | grep "^docker.io/${image%:*}[:@]"); do
        on_kit images rm --sync "$old" >/dev/null
    done
    size=$(docker image inspect --format '{{.Size}}' "$image")
    # Its archive and its files, and what the pods themselves write.
    need_room "loading $image" "${CLUSTER_STATE:-/var/lib/local-cluster}" $((2 * size / 1024 ** 3 + 3))
}

load_image() {
    local context
    context=$(kubectl config current-context)
    if [[ $context == kind-* ]]; then
        kind load docker-image "$1" --name "${context#kind-}"
    elif [ -x "$kit/cluster-load" ]; then
        make_way "$1"
        "$kit/cluster-load" "$1"
    else
        fail "the nodes of $context cannot be given an image from here." \
            "next: push the images of \`make images\`, and name them by" \
            "      SSSFLOW_TEST_PIPELINE_IMAGE and SSSFLOW_TEST_TRITON_IMAGE."
    fi
    say "loaded $1"
}

# The loaded image by its digest, as a submission names it: an image that was not pulled has none.
by_digest() {
    local image=docker.io/$1 context node digest
    context=$(kubectl config current-context)
    local runtimes=("on_kit")
    if [[ $context == kind-* ]]; then
        mapfile -t runtimes < <(
            kind get nodes --name "${context#kind-}" | sed 's/.*/docker exec & ctr --namespace k8s.io/'
        )
    fi
    for node in "${runtimes[@]}"; do
        digest=$($node images ls "name==$image" | awk 'NR == 2 { print $3 }')
        $node images tag --force "$image" "${image%:*}@$digest" >/dev/null
    done
    printf '%s\n' "${1%:*}@$digest"
}

make_cluster
if [ -z "${SSSFLOW_TEST_PIPELINE_IMAGE:-}" ] || [ -z "${SSSFLOW_TEST_TRITON_IMAGE:-}" ]; then
    make_images
    for name in pipeline triton; do
        variable=SSSFLOW_TEST_${name^^}_IMAGE
        [ -z "${!variable:-}" ] || continue
        image=$(cut -d' ' -f1 "build/images/$name.txt")
        load_image "$image"
        export "$variable=$(by_digest "$image")"
    done
fi
"$venv/bin/python" -m pytest -m cluster -rs --durations=10 tests/integration "$@"
