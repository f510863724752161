#compdef kdrun
# TAB for kdrun. Add to ~/.zshrc, below compinit:  eval "$(kdrun --completion zsh)"   (or save this text as _kdrun in $fpath)
_kdrun() {
    local -a found
    found=("${(@f)$("${words[1]/#\~\//$HOME/}" --complete zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2> /dev/null)}")
    # what may go on has no space after it: key=, a folder/, a group., a list that is open
    compadd -S '' -- ${(M)found:#(*[=/.]|*\[*)}
    compadd -- ${found:#(*[=/.]|*\[*)}
}
if [[ $funcstack[1] == _kdrun ]]; then
    _kdrun "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _kdrun kdrun
fi
