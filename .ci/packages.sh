# For scripts that install from the system's packages: `. .ci/packages.sh`, having defined `say`.

# Runs a command as root: as it is, or through sudo when that works without a question or there is a terminal to ask on.
[[ -t 0 ]] && may_ask=yes || may_ask=no
as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ $may_ask = yes ]]; }; then
    sudo "$@"
  else
    echo "expected to be root, or to have sudo, for: $*" >&2
    return 126
  fi
}

# quietly COMMAND...: its output is shown only when it fails.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null || status=$?
  [[ $status -eq 0 ]] || cat "$log" >&2
  rm -f "$log"
  return "$status"
}

apt_updated=no
# apt_install PACKAGE...: 0 when they are installed now.
apt_install() {
  command -v apt-get >/dev/null || return 1
  if [[ $apt_updated = no ]]; then
    say "refreshing the package lists (apt-get update)"
    quietly as_root apt-get update -qq || return 1
    apt_updated=yes
  fi
  say "installing from the system's packages: $*"
  quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

policy=/usr/sbin/policy-rc.d
policy_is_ours=no
drop_policy() { [[ $policy_is_ours = no ]] || { as_root rm -f "$policy" && policy_is_ours=no; }; }

# apt_install_off UNIT,UNIT... PACKAGE...: the same for packages that would start a server for the whole machine and
# have it start at boot, when only its program is wanted. Debian's policy file forbids starting anything while it is
# there. A caller that has an EXIT trap of its own has it call drop_policy.
apt_install_off() {
  local status=0 units=${1//,/ }
  shift
  if [[ ! -e $policy ]]; then
    [[ -n $(trap -p EXIT) ]] || trap drop_policy EXIT
    policy_is_ours=yes
    as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy" || return 1
  fi
  apt_install "$@" || status=$?
  drop_policy
  if [[ $status -eq 0 ]] && command -v systemctl >/dev/null; then
    say "its service stays off: systemctl disable $units"
    # shellcheck disable=SC2086
    quietly as_root systemctl disable $units || true
  fi
  return "$status"
}
