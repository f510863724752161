# TAB for kdrun. Save as a file that fish reads:  kdrun --completion fish > ~/.config/fish/completions/kdrun.fish
function __kdrun
    set -l before (commandline -opc)
    set -l command (string replace -r '^~/' "$HOME/" -- $before[1])
    $command --complete fish $before[2..] (commandline -ct) 2>/dev/null
end
complete -c kdrun -f -a '(__kdrun)'
