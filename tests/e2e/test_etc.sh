#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What etc/ ships for other programs, held to those programs' own checks (promtool, haproxy, kubernetes-validate, shellcheck: those that are not
# installed are passed over) and to what kdserved and its worker say of the settings in it.
top=${top_srcdir:-$(dirname "$0")/../..}
build=$(cd "${top_builddir:-.}" && pwd)
scratch=$(mktemp -d) && trap 'rm -r "$scratch"' EXIT
failed=0
# haproxy is nobody's but root's
PATH=$PATH:/usr/sbin:/sbin

# check PROGRAM ARGUMENT...
check() {
	command -v "$1" >/dev/null || { echo "SKIP: $1 is not installed"; return; }
	if "$@" >"$scratch/said" 2>&1; then echo "ok: $*"; else failed=1; cat "$scratch/said"; echo "FAIL: $*"; fi
}

# expect STATUS PATTERN PROGRAM ARGUMENT...: that exit status, and output that the pattern matches
expect() {
	local want=$1 pattern=$2 status
	shift 2
	"$@" >"$scratch/said" 2>&1
	status=$?
	if [ $status = "$want" ] && { [ -z "$pattern" ] || grep -qE -e "$pattern" "$scratch/said"; }; then echo "ok: $status from $*"; return; fi
	failed=1
	cat "$scratch/said"
	echo "FAIL: $status, not $want and \"$pattern\", from $*"
}

# block NAME FILE: what the block scalar NAME of a YAML file holds
block() { sed -n "/^  $1: |\$/,/^[^ ]/{s/^    //p}" "$2"; }

check promtool check rules "$top/etc/prometheus/kdserved.rules.yml"
check promtool check config "$top/etc/prometheus/prometheus.yml"
check promtool test rules "$top/etc/prometheus/kdserved.test.yml"
check haproxy -c -f "$top/etc/haproxy/haproxy.cfg"
check kubernetes-validate --strict "$top/etc/kubernetes/kdserved.yaml"
check bash -n "$top/etc/slurm/kdserved-worker.sbatch"
check shellcheck "$top/etc/slurm/kdserved-worker.sbatch"
check shellcheck "$top/etc/kdserved.bash"

# Kubernetes: the daemon takes the settings, with the tokens that the secret brings; without them it opens no door to other machines.
manifest=$top/etc/kubernetes/kdserved.yaml
block tokens "$manifest" >"$scratch/tokens"
chmod 440 "$scratch/tokens"
mounted=$(sed -n 's/^ *- {name: tokens, mountPath: \([^,]*\),.*/\1/p' "$manifest")
block kdserved.conf "$manifest" | sed -e "s|= /models/teacher.gguf|= $top/etc/teacher|" -e "s|= $mounted/tokens|= $scratch/tokens|" \
	-e "s|= /var/lib/kdserved/|= $scratch/|" >"$scratch/kdserved.conf"
grep -q "^tokens = $scratch/tokens$" "$scratch/kdserved.conf" || { failed=1; echo "FAIL: the settings name no file of the secret, mounted at \"$mounted\""; }
expect 0 '' "$build/kdserved" --check-config --config "$scratch/kdserved.conf"
sed '/^tokens/d' "$scratch/kdserved.conf" >"$scratch/open.conf"
expect 78 'set tokens' "$build/kdserved" --check-config --config "$scratch/open.conf"
echo 'alice 00 score' >"$scratch/tokens.bad"
sed "s|^tokens.*|tokens = $scratch/tokens.bad|" "$scratch/kdserved.conf" >"$scratch/bad.conf"
expect 78 'tokens.bad:1' "$build/kdserved" --check-config --config "$scratch/bad.conf"
# The probes ask for what needs no token.
for path in $(sed -n 's/.*httpGet: {path: \([^,]*\),.*/\1/p' "$manifest"); do
	case $path in /live | /ready) ;; *) failed=1; echo "FAIL: a probe asks for $path" ;; esac
done

# Slurm: what srun would start is a worker that takes these options. This srun knows the options of srun that the script uses, and no more.
cat >"$scratch/srun" <<END
#!/bin/bash
while [[ \$1 == --mpi=pmix || \$1 == --kill-on-bad-exit=1 || \$1 == --cpu-bind=cores ]]; do shift; done
exec "\$@" --check-config
END
chmod +x "$scratch/srun"
printf 'corpus = %s\nstudent = random\nloss = forward-kl top-k=8\n' "$top/etc/teacher/persuasion.txt" >"$scratch/run.conf"
expect 0 '' env PATH="$scratch:$build:$PATH" SLURM_CPUS_PER_TASK=2 bash "$top/etc/slurm/kdserved-worker.sbatch" "$scratch/run.conf" "$scratch/run" tcp:teacher.example:7071
echo 'no-such-setting = 1' >>"$scratch/run.conf"
expect 78 'run.conf:4' env PATH="$scratch:$build:$PATH" bash "$top/etc/slurm/kdserved-worker.sbatch" "$scratch/run.conf" "$scratch/run" tcp:teacher.example:7071
expect 1 'usage: sbatch' bash "$top/etc/slurm/kdserved-worker.sbatch"
exit $failed
