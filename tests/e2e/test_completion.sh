#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The completion of bash offers what the programs take: every option it offers is one, with or without a value as it thinks; every option of the
# manual pages is offered; and files, addresses, values and runs where those are wanted.
set -u
scratch=$(mktemp -d) && trap 'rm -r "$scratch"' EXIT
failed=0
fail() { echo "FAILED: $*"; failed=1; }
# shellcheck source=etc/kdserved.bash
. "$top_srcdir/etc/kdserved.bash"
programs=$(cd "$top_builddir" && pwd)
# libtool's own shell scripts take longer to start than the programs
[ ! -x "$programs/.libs/kdctl" ] || { export LD_LIBRARY_PATH=$programs/.libs; PATH=$programs/.libs:$PATH; }
PATH=$scratch:$PATH:$programs

# offered LINE: what is offered at its end, a word a line. Words are cut where readline cuts them.
offered() {
	local rest=$1 COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=() COMP_CWORD COMPREPLY=()
	while [[ $rest =~ ^[[:space:]]*([:=]+|[^[:space:]:=]+) ]]; do
		COMP_WORDS+=("${BASH_REMATCH[1]}")
		rest=${rest:${#BASH_REMATCH[0]}}
	done
	[[ $1 == *[[:space:]] ]] && COMP_WORDS+=('')
	COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
	_kdserved "${COMP_WORDS[0]}" "${COMP_WORDS[COMP_CWORD]}" ''
	[ ${#COMPREPLY[@]} = 0 ] || printf '%s\n' "${COMPREPLY[@]}" | sort -u
}

# offers LINE WORD...: exactly these
offers() {
	local line=$1 got want
	shift
	got=$(offered "$line")
	want=$(printf '%s\n' "$@" | sort)
	[ "$got" = "$want" ] || fail "\"$line\" offers ($(echo $got)), not ($(echo $want))"
}

# offers_among LINE WORD...: these, others besides
offers_among() {
	local line=$1 got word
	shift
	got=$(offered "$line")
	for word in "$@"; do
		grep -qxF -e "$word" <<<"$got" || fail "\"$line\" does not offer $word, but ($(echo $got))"
	done
}

# takes PROGRAM [COMMAND...]: each option offered is taken; --help after it is reached, or, if a value is missing, is that value.
takes() {
	local option said status
	local -A _kd_takes
	local _kd_commands _kd_usage _kd_rest _kd_program=$1
	_kd_read_help "$@"
	for option in $(offered "$* --"); do
		echo "$* $option" >>"$scratch/tried"
		[ "$option" != --help ] || continue
		if _kd_needs_value "$option"; then
			said=$("$@" "$option" 2>&1 </dev/null)
			status=$?
			[ $status = 2 ] && grep -qE 'value|requires an argument' <<<"$said" || fail "$* $option, without a value: $status, $said"
		else
			said=$("$@" "$option" --help 2>&1 </dev/null)
			status=$?
			[ $status = 0 ] || fail "$* $option --help: $status, $said"
		fi
	done
}

commands=$(sed -n 's/^\.Ss \([a-z]*\).*/\1/p' "$top_srcdir/man/kdctl.1" | sort -u)
offers 'kdctl ' $commands
offers 'kdctl --json --server unix:/nowhere sc' score
store=$(offered 'kdctl store ')
methods=$(offered 'kdctl select ')
takes kdctl
for command in $commands; do
	[ "$command" = store ] || [ "$command" = runs ] || [ "$command" = token ] || takes kdctl "$command"
done
for command in $store; do
	takes kdctl store "$command"
done
takes kdctl runs watch
takes kdctl runs plot
takes kdctl token new
takes kdserved
takes kdserved-worker
[ "$(wc -l <"$scratch/tried")" -gt 250 ] || fail "only $(wc -l <"$scratch/tried") options were tried"

# What the manual pages have is offered somewhere.
sed 's/.* //' "$scratch/tried" | sort -u >"$scratch/options"
sed -nE 's/\\-/-/g; /Fl Fl/{s/Fl Fl ([a-z0-9-]+)/\n--\1\n/g; p}' "$top_srcdir"/man/kdctl.1 "$top_srcdir"/man/kdserved.8 | grep '^--[a-z]' |
	sort -u >"$scratch/manual"
[ "$(wc -l <"$scratch/manual")" -gt 100 ] || fail "only $(wc -l <"$scratch/manual") options were found in the manual pages"
missing=$(comm -13 "$scratch/options" "$scratch/manual")
[ -z "$missing" ] || fail "of the manual pages, these are never offered: $(echo $missing)"

# And what kdctl takes is in its page. (The settings of the other two are held to theirs by test_options and test_run_def.)
sed -n '/^kdctl/s/.* //p' "$scratch/tried" | sort -u >"$scratch/taken"
sed -nE 's/\\-/-/g; /Fl Fl/{s/Fl Fl ([a-z0-9-]+)/\n--\1\n/g; p}' "$top_srcdir/man/kdctl.1" | grep '^--[a-z]' | sort -u >"$scratch/told"
missing=$(comm -23 "$scratch/taken" "$scratch/told")
[ -z "$missing" ] || fail "kdctl(1) does not tell of: $(echo $missing)"

# values
offers 'kdserved --device ' auto cpu cuda ref
offers 'kdserved --device=c' cpu cuda
offers 'kdserved --canary-reference=' yes no
offers_among 'kdserved --canary-reference --de' --device
offers 'kdctl score --values f1' f16
offers_among 'kdserved-worker --loss ' forward-kl taid cross-entropy
offers 'kdctl select d' difference domains dsir
offers_among 'kdctl select dsir --' --target --min-words --output
[ "$(echo $methods)" = 'difference domains dsir queries' ] || fail "methods of select: $methods"
offers_among 'kdctl store ' ls verify export import prune
offers 'kdctl store export --format ' # said in the help's words alone
offers 'kdctl token ' new

# files and addresses
mkdir "$scratch/here" "$scratch/here/shards" && cd "$scratch/here" || exit 99
touch a.conf 'b c.txt' kd.sock
offers 'kdctl score a' a.conf
offers 'kdctl score --records ' a.conf 'b c.txt' kd.sock shards
offers 'kdctl capture --store ' shards
offers 'kdctl store verify ' a.conf 'b c.txt' kd.sock shards
offers 'kdserved --teacher a' a.conf
offers 'kdserved --config=' a.conf 'b c.txt' kd.sock shards
offers 'kdctl --server ' unix: tcp: tls:
offers 'kdctl --server unix:k' kd.sock
offers 'kdctl --server=unix:k' kd.sock
offers 'kdctl model ' ''
offers 'kdserved ' ''

# training runs: from the server that the line names
cat >kdctl.fake <<END
#!/bin/bash
case \$* in
*'--json runs') echo "\$*" >$scratch/asked; echo '{"runs":[{"id":"first","state":"done"},{"id":"second-1","state":"running"}]}' ;;
*) exec $(command -v kdctl) "\$@" ;;
esac
END
chmod +x kdctl.fake && mv kdctl.fake "$scratch/kdctl"
offers 'kdctl runs ' first second-1 stop watch plot
offers 'kdctl --json --server unix:/run/x.sock runs watch s' second-1
[ "$(cat "$scratch/asked")" = '--server unix:/run/x.sock --json runs' ] || fail "the server was asked: $(cat "$scratch/asked")"
offers 'kdctl runs stop f' first
rm "$scratch/kdctl"
offers 'kdctl --server unix:/nowhere runs stop ' ''
exit $failed
