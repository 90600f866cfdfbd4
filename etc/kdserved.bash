# SPDX-License-Identifier: Apache-2.0
# bash completion for kdctl, kdserved and kdserved-worker, installed once under each of these names. What is offered is read from the programs' own
# --help when it is asked for (a few milliseconds), so it is always what the installed version takes. Names of training runs and losses
# come from the server and the worker themselves.
# shellcheck disable=SC2207,SC2034

# Notes the options in a piece of help: _kd_takes[--option]=WORD of its value, or nothing. Words that are no option's value are left in _kd_rest.
_kd_note_options()
{
	local word name='' text=${1//]/ ] }
	local -
	set -f
	_kd_rest=
	for word in ${text//[[,]/ }; do
		case $word in
		--*) name=${word%%=*}; _kd_takes[$name]=${_kd_takes[$name]-} ;;
		']' | '|') name= ;;
		*) if [ -n "$name" ]; then _kd_takes[$name]=${_kd_takes[$name]:-$word}; else _kd_rest+=" $word"; fi; name= ;;
		esac
	done
}

# Reads the help of PROGRAM [COMMAND...] into _kd_takes, _kd_commands (what may come next) and _kd_usage (arguments that are no options).
# The left column of a line is what counts: it ends at two spaces.
_kd_read_help()
{
	local line left section=
	_kd_takes=() _kd_commands=() _kd_usage=
	while IFS= read -r line; do
		left=${line#  }
		left=${left%%  *}
		case $line in
		'') section= ;;
		Commands: | Methods:) section=$line ;;
		Options:) section= ;;
		Usage:*) _kd_note_options "${line#Usage: "${1##*/}"}"; _kd_usage=$_kd_rest ;;
		'  --'*) _kd_note_options "$left" ;;
		'  '[a-z]*)
			[ -z "$section" ] || _kd_commands+=("${left%% *}")
			[ "$section" != Methods: ] || _kd_note_options "$left" ;;
		esac
	done < <("$@" --help 2>/dev/null)
	_kd_takes[--help]=
	case " $_kd_usage" in
	*' runs '*) _kd_commands=(stop watch plot) ;;
	*' token new'*) _kd_commands=(new) ;;
	esac
}

# The words before the cursor as the shell will see them (bash cuts at : and = besides), in _kd_words; the last is the one to complete.
_kd_split_line()
{
	local line=${COMP_LINE:0:COMP_POINT} word i
	_kd_words=()
	for ((i = 0; i <= COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ -z $line || $line == [[:space:]]* ]] || [ ${#_kd_words[@]} = 0 ]; then
			line=${line#"${line%%[![:space:]]*}"}
			_kd_words+=('')
		fi
		[ "$i" -lt "$COMP_CWORD" ] || word=$line
		line=${line#"$word"}
		_kd_words[-1]+=$word
	done
}

_kd_offer_files()
{
	compopt -o filenames 2>/dev/null
	local IFS=$'\n'
	COMPREPLY+=($(compgen "$1" -- "$2"))
}

_kd_offer_words()
{
	local IFS=$' \t\n'
	COMPREPLY+=($(compgen -W "$1" -- "$2"))
}

_kd_offer_address()
{
	case $1 in
	unix:*)
		_kd_offer_files -f "${1#unix:}"
		COMPREPLY=("${COMPREPLY[@]/#/unix:}") ;;
	tcp:* | tls:*) ;;
	*)
		compopt -o nospace 2>/dev/null
		_kd_offer_words 'unix: tcp: tls:' "$1" ;;
	esac
}

# Values of the option $1, whose value the help calls $2, that begin with $3.
_kd_offer_value()
{
	case $1:$2 in
	--server:* | --default-server:* | --socket:* | --reference:ADDRESS) _kd_offer_address "$3" ;;
	--loss:*) _kd_offer_words "$("$_kd_program" --list-losses 2>/dev/null | sed -n 's/^\([a-z][a-z0-9-]*\): .*/\1/p')" "$3" ;;
	*'|'*) _kd_offer_words "${2//|/ }" "$3" ;;
	*:ADDRESS*) _kd_offer_address "$3" ;;
	--store:* | --runs:* | *:DIR*) _kd_offer_files -d "$3" ;;
	*:*FILE* | *:PATH* | *:*.conf | *:MODEL | --corpus:* | --student:* | --tokenizer:* | --teacher:TEXT | --*-file:* | --student-tokenizer:*)
		_kd_offer_files -f "$3" ;;
	esac
}

# Ids of the server's training runs, asked with the options that stand before the command.
_kd_offer_runs()
{
	local list ids='' i before=()
	for ((i = 1; i < $2; i++)); do
		[ "${_kd_words[i]}" = --json ] || before+=("${_kd_words[i]}")
	done
	list=$(timeout 2 "$_kd_program" "${before[@]}" --json runs 2>/dev/null </dev/null)
	while [[ $list =~ \"id\":\ ?\"([a-z0-9_-]+)\" ]]; do
		ids+=" ${BASH_REMATCH[1]}"
		list=${list#*"${BASH_REMATCH[0]}"}
	done
	_kd_offer_words "$ids" "$1"
}

# Takes the command (and the command's command) among the words; reads the help that holds there. What precedes is left in _kd_at: the place of
# the last word of the command; _kd_pending: the option that waits for its value, if the last word is that.
_kd_find_place()
{
	local i word n=$((${#_kd_words[@]} - 1)) command=("$_kd_program")
	_kd_at=0 _kd_first=0 _kd_n_arguments=0 _kd_pending=
	_kd_read_help "${command[@]}"
	for ((i = 1; i < n; i++)); do
		word=${_kd_words[i]}
		if [[ $word == --* ]]; then
			_kd_needs_value "$word" || continue
			i=$((i + 1))
			[ $i -lt $n ] || _kd_pending=$word
		elif [[ ${#_kd_commands[@]} -gt 0 && " ${_kd_commands[*]} " == *" $word "* ]]; then
			_kd_at=$i
			[ "$_kd_first" -gt 0 ] || _kd_first=$i
			command+=("$word")
			_kd_n_arguments=0
			[ "$word" = stop ] && _kd_commands=() && continue
			[ "${command[*]:1}" = 'token new' ] && _kd_commands=() && continue
			# Methods of select share one help; a command has its own
			[ "${command[1]-}" = select ] && [ ${#command[@]} -gt 2 ] && _kd_commands=() && continue
			_kd_read_help "${command[@]}"
			[ "$word" != watch ] && [ "$word" != plot ] || _kd_commands=()
		else
			_kd_n_arguments=$((_kd_n_arguments + 1))
		fi
	done
	_kd_command=${command[*]:1}
}

# Whether the next word belongs to the option $1. The daemon's switches need none: --canary-reference is --canary-reference=yes.
_kd_needs_value()
{
	local value=${_kd_takes[$1]-}
	[[ -n $value && $1 != *=* ]] || return 1
	[[ $value != 'yes|no' || ${_kd_program##*/} != kdserved ]]
}

_kd_offer_argument()
{
	[ ${#_kd_commands[@]} = 0 ] || [ "$_kd_n_arguments" -gt 0 ] || _kd_offer_words "${_kd_commands[*]}" "$1"
	case $_kd_command in
	runs*) _kd_offer_runs "$1" "$_kd_first" ;;
	esac
	if [[ ${#_kd_commands[@]} = 0 && $_kd_usage =~ (FILE|DIR|FROM|CORPUS|PROMPTS|MODEL|ITEMS|\.conf) ]]; then
		_kd_offer_files -f "$1"
	fi
}

_kdserved()
{
	local _kd_program=${1/#\~/$HOME} _kd_words _kd_commands _kd_usage _kd_rest _kd_at _kd_first _kd_n_arguments _kd_pending _kd_command current
	local -A _kd_takes
	COMPREPLY=()
	_kd_split_line
	_kd_find_place
	current=${_kd_words[-1]}
	if [ -n "$_kd_pending" ]; then
		_kd_offer_value "$_kd_pending" "${_kd_takes[$_kd_pending]}" "$current"
	elif [[ $current == --*=* ]]; then
		_kd_offer_value "${current%%=*}" "${_kd_takes[${current%%=*}]-}" "${current#*=}"
		COMPREPLY=("${COMPREPLY[@]/#/${current%%=*}=}")
	elif [[ $current == -* ]]; then
		_kd_offer_words "${!_kd_takes[*]}" "$current"
	else
		_kd_offer_argument "$current"
	fi
	# readline replaces only what stands behind the last of these
	local behind=${current##*[:=]}
	[ "$behind" = "$current" ] || COMPREPLY=("${COMPREPLY[@]#"${current%"$behind"}"}")
}

complete -F _kdserved kdctl kdserved kdserved-worker
