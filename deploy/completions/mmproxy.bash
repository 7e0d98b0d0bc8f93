# Generated: deno task manual
# shellcheck shell=bash disable=SC2207

_mmproxy() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} words
  COMPREPLY=()
  case $previous in
    -p|--protocol) COMPREPLY=($(compgen -W "tcp udp both" -- "$current")); return ;;
    --upstream) COMPREPLY=($(compgen -W "family destination" -- "$current")); return ;;
    --udp-header) COMPREPLY=($(compgen -W "datagram session spp" -- "$current")); return ;;
    --log-level) COMPREPLY=($(compgen -W "error warn info access debug" -- "$current")); return ;;
    --log-format) COMPREPLY=($(compgen -W "text json" -- "$current")); return ;;
    --color) COMPREPLY=($(compgen -W "auto always never" -- "$current")); return ;;
    --sandbox) COMPREPLY=($(compgen -W "auto on off" -- "$current")); return ;;
    --offload) COMPREPLY=($(compgen -W "auto off" -- "$current")); return ;;
    -a|--allowed-subnets|--control|--take-over|--config) COMPREPLY=($(compgen -f -- "$current")); return ;;
    -l|--listen-addr|-4|--ipv4|-6|--ipv6|--allowed-destinations|--table|-m|--mark|--header-timeout|--connect-timeout|--keepalive|--idle-timeout|-c|--close-after|--drain-timeout|--shutdown-delay|--upgrade-drain|--metrics-addr|--workers|--listeners|--listener|--client|--limit) return ;;
  esac
  case ${COMP_WORDS[1]} in
    routes) words="up down show -l --listen-addr --transparent -p --protocol -4 --ipv4 -6 --ipv6 --upstream --allowed-destinations --table -m --mark --color --config --dry-run -h --help" ;;
    doctor) words="-l --listen-addr --transparent -p --protocol -4 --ipv4 -6 --ipv6 --upstream --allowed-destinations -a --allowed-subnets --auto-routes --table -m --mark --connect-timeout --color --metrics-addr --workers --listeners --sandbox --offload --config --json --fix --yes -h --help" ;;
    check) words="--config -h --help" ;;
    status) words="--control --config --json -h --help" ;;
    connections) words="--control --config --listener --client --limit --json -h --help" ;;
    close) words="--control --config --listener --client -h --help" ;;
    reload) words="--control --config -h --help" ;;
    upgrade) words="--control --config -h --help" ;;
    top) words="--control --config -h --help" ;;
    help) words="install moving flags config routes connections control upgrade doctor systemd sandbox offload containers trust logs status-page metrics dscp proxy-protocol performance sshd postfix mail-host game-server dns syslog wireguard ftp quic sip mixed-port health-checks local-clients aws-nlb nlb-tls marking senders cloudflare-spectrum frp transparent -h --help" ;;
    *) words="-l --listen-addr --transparent -p --protocol -4 --ipv4 -6 --ipv6 --upstream --allowed-destinations -a --allowed-subnets --udp-header --auto-routes --table -m --mark --header-timeout --connect-timeout --keepalive --idle-timeout -c --close-after --drain-timeout --shutdown-delay --upgrade-drain --log-level --log-format --color --metrics-addr --control --workers --listeners --sandbox --offload --watch --take-over --config --version -h --help" ;;
  esac
  if ((COMP_CWORD == 1)); then
    words="routes doctor check status connections close reload upgrade top help -l --listen-addr --transparent -p --protocol -4 --ipv4 -6 --ipv6 --upstream --allowed-destinations -a --allowed-subnets --udp-header --auto-routes --table -m --mark --header-timeout --connect-timeout --keepalive --idle-timeout -c --close-after --drain-timeout --shutdown-delay --upgrade-drain --log-level --log-format --color --metrics-addr --control --workers --listeners --sandbox --offload --watch --take-over --config --version -h --help"
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o filenames -F _mmproxy mmproxy
