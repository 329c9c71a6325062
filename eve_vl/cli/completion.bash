_eve() {
    local verb= word=
    ((COMP_CWORD > 1)) && verb="${COMP_WORDS[1]}"
    ((COMP_CWORD > 2)) && word="${COMP_WORDS[2]##-*}"
    [[ "$_eve_asked" == "$verb $word" ]] || _eve_words="$(COLUMNS=80 eve $verb $word --help 2>/dev/null | sed -nE "
        s/^  ($verb )?([[:alnum:]_-]+) .*/\2/p
        s/^[^-a-z ]+ -h, (--help).*/\1 --code/p
        s/^[^-a-z ]+ (--[a-z.-]+(, --[a-z.-]+)*).*/\1/p
        s/^[^-a-z ]+ \{([a-z,]+)\} .*/\1/p
        s/^eve (help) VERB.*/\1/p" | tr , ' ')"
    _eve_asked="$verb $word"
    COMPREPLY=($(compgen -W "$_eve_words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _eve eve
