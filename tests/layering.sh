#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Fails on an include that points to the right in the layer order, or on an outside library away from its home (README, "Layers").
cd "${top_srcdir:-$(dirname "$0")/..}" || exit 99
failed=0

# allow FOLDER-REGEX INCLUDE-REGEX: files below FOLDER may include, of ours, only what matches.
allow() {
	local files
	files=$(find common kernels daemon clients -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.def' | grep -E "^($1)" | sort)
	[ -n "$files" ] || { echo "layering: no file matches $1"; failed=1; return; }
	# shellcheck disable=SC2086
	if grep -nE '^#[[:space:]]*include "' $files | grep -vE ":#[[:space:]]*include \"($2|config\.h)" ; then
		echo "layering: the lines above include what $1 must not see"
		failed=1
	fi
}

# home LIBRARY-HEADER-REGEX FILE-REGEX: only these files may include the library.
home() {
	if grep -rnE "^#[[:space:]]*include <($1)" common kernels daemon clients | grep -vE "^($2):" ; then
		echo "layering: <$1> belongs in $2 alone"
		failed=1
	fi
}

allow 'common/'             'common/'
allow 'kernels/'            'common/|kernels/'
allow 'daemon/model/'       'common/|kernels/|daemon/model/|daemon/jansson\.h'
allow 'daemon/loss/'        'common/|kernels/|daemon/loss/'
allow 'daemon/teacher/'     'common/|kernels/|daemon/(model|teacher)/|daemon/(queue|clock|histogram|ring)\.h'
allow 'daemon/store/'       'common/|daemon/store/|daemon/(queue|histogram|ring)\.h'
allow 'daemon/train/'       'common/|daemon/(loss|train)/|daemon/(clock|config|histogram|jansson|log)\.h'
allow 'daemon/worker/'      'common/|kernels/|clients/kdclient\.h|daemon/(loss|model|store|worker)/|daemon/train/(group|other|settings)\.h|daemon/(clock|config|idle|jansson|log)\.h'
allow 'daemon/server/'      'common/|daemon/(model|teacher|store|train|server)/|daemon/(log|queue|clock|histogram|jansson)\.h'
allow 'daemon/(config|log|queue|clock|histogram|idle|jansson|ring)\.' 'common/|daemon/(config|log|queue|clock|histogram|idle|jansson|ring)\.h'
allow 'clients/'            'common/|clients/|daemon/store/(packed|store|surplus|survey|upkeep)\.h|daemon/train/history\.h|daemon/jansson\.h|daemon/model/(config|gguf|packing|text_file|tokenizer|unicode)\.h'

home 'microhttpd\.h'        'daemon/server/http[a-z_]*\.[ch]'
home 'liburing\.h'          'daemon/ring\.c'
home 'zstd\.h'              'daemon/store/packed\.c'
home 'oneapi/|dnnl'         'kernels/cpu/.*'
home 'cuda|cublas'          'kernels/cuda/.*'
home 'mpi\.h'             'daemon/worker/team_mpi\.c'
home 'nccl'               'kernels/cuda/.*'
home 'systemd/'             'daemon/(listeners|notify|log_journal)\.c'
home 'nettle/'              'common/sequence\.c'
home 'gnutls/'              'common/transport\.c'
home 'pcre2'                'daemon/model/(tokenizer|pretokenizer)[a-z_]*\.c'
home 'jansson\.h'           'daemon/(jansson\.[ch]|server/(json|control)[a-z_]*\.[ch]|model/.*|train/.*|worker/.*)|clients/kdctl.*'

# texts from outside are read where a lack of memory is told from bad text
if grep -rnE '\bjson_(load[a-z_]*|dumps)\(' kernels daemon clients | grep -v '^daemon/jansson\.[ch]:'; then
	echo "layering: JSON is read by jansson_load() and made by jansson_dump() (daemon/jansson.h)"
	failed=1
fi

[ $failed = 0 ] && echo "layering: clean"
exit $failed
