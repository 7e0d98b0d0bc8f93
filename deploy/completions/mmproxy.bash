# Generated: deno task manual
# shellcheck shell=bash disable=SC2207

_mmproxy() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} words
  COMPREPLY=()
  case $previous in
    -p|--protocol) COMPREPLY=($(compgen -W "tcp udp both" -- "$current")); return ;;
    --udp-header) COMPREPLY=($(compgen -W "datagram session spp" -- "$current")); return ;;
    --log-level) COMPREPLY=($(compgen -W "error warn info access debug" -- "$current")); return ;;
    --log-format) COMPREPLY=($(compgen -W "text json" -- "$current")); return ;;
    --sandbox) COMPREPLY=($(compgen -W "auto on off" -- "$current")); return ;;
    -a|--allowed-subnets|--control|--config) COMPREPLY=($(compgen -f -- "$current")); return ;;
    -4|--ipv4|-6|--ipv6|-c|--close-after|-l|--listen-addr|--workers|--listeners|-m|--mark|--header-timeout|--connect-timeout|--keepalive|--idle-timeout|--drain-timeout|--shutdown-delay|--table|--metrics-addr|--listener|--client|--limit) return ;;
  esac
  case ${COMP_WORDS[1]} in
    routes) words="up down show -4 --ipv4 -6 --ipv6 -l --listen-addr -p --protocol -m --mark --table --config --dry-run -h --help" ;;
    doctor) words="-4 --ipv4 -6 --ipv6 -a --allowed-subnets -l --listen-addr --workers --listeners -p --protocol -m --mark --connect-timeout --auto-routes --table --sandbox --metrics-addr --config --json -h --help" ;;
    check) words="--config -h --help" ;;
    status) words="--control --config --json -h --help" ;;
    connections) words="--control --config --listener --client --limit --json -h --help" ;;
    close) words="--control --config --listener --client -h --help" ;;
    reload) words="--control --config -h --help" ;;
    top) words="--control --config -h --help" ;;
    help) words="install moving config routes connections control doctor systemd sandbox containers trust logs metrics dscp proxy-protocol performance sshd postfix game-server dns aws-nlb cloudflare-spectrum frp -h --help" ;;
    *) words="-4 --ipv4 -6 --ipv6 -a --allowed-subnets -c --close-after -l --listen-addr --workers --listeners -p --protocol -m --mark --header-timeout --connect-timeout --keepalive --idle-timeout --drain-timeout --shutdown-delay --udp-header --log-level --log-format --auto-routes --watch --table --sandbox --metrics-addr --control --config --version -h --help" ;;
  esac
  if ((COMP_CWORD == 1)); then
    words="routes doctor check status connections close reload top help -4 --ipv4 -6 --ipv6 -a --allowed-subnets -c --close-after -l --listen-addr --workers --listeners -p --protocol -m --mark --header-timeout --connect-timeout --keepalive --idle-timeout --drain-timeout --shutdown-delay --udp-header --log-level --log-format --auto-routes --watch --table --sandbox --metrics-addr --control --config --version -h --help"
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o filenames -F _mmproxy mmproxy
