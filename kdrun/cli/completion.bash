# TAB for kdrun. Add to ~/.bashrc:  eval "$(kdrun --completion bash)"   (or save this text, and source it there)
_kdrun() {
    mapfile -t COMPREPLY < <("${1/#~\//$HOME/}" --complete bash "${COMP_LINE:0:COMP_POINT}" "$2" 2> /dev/null)
    # what may go on has no space after it: key=, a folder/, a group., a list that is open
    [[ ${#COMPREPLY[@]} -eq 1 && (${COMPREPLY[0]} == *[=/.] || ${COMPREPLY[0]} == *\[*) ]] && compopt -o nospace
}
complete -F _kdrun kdrun
