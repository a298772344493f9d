#!/bin/sh
# The image's entry point: the server, for which a certificate and a token are made at the first start if none are
# given. They stay in /secrets: server.pem, which clients take as their `ca`, and token, the secret of the token "first".
# Starts take turns, and what one is killed in is made anew by the next: what is looked for is put in its place last.
#
#   CERTIFICATE_NAMES   the names and addresses under which clients reach the server
set -eu
umask 077
case "${1:-}" in
  "" | -*) ;; # it serves
  *) exec seqloom-server "$@" ;;
esac

certificate= tokens=
[ "${SEQLOOM_TLS_CERTIFICATE:-}" != /secrets/server.pem ] || certificate=/secrets/server.pem
[ "${SEQLOOM_TOKENS:-}" != /secrets/tokens.toml ] || tokens=/secrets/tokens.toml
missing() { [ -n "$1" ] && [ ! -e "$1" ]; }

if missing "$certificate" || missing "$tokens"; then
  exec 9>/secrets/.lock
  flock 9
  new=$(mktemp -d /secrets/.new.XXXXXX)
  trap 'rm -rf "$new"' EXIT
  if missing "$certificate"; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=seqloom \
      -addext "subjectAltName=${CERTIFICATE_NAMES:-DNS:localhost,DNS:server,IP:127.0.0.1}" \
      -keyout "$new/server.key" -out "$new/server.pem" 2>"$new/errors" || { cat "$new/errors" >&2; exit 1; }
    mv "$new/server.key" /secrets/server.key
    mv "$new/server.pem" /secrets/server.pem
  fi
  if missing "$tokens"; then
    seqloom-server make-token first --scopes infer,train,admin --tokens "$new/tokens.toml" >"$new/token"
    mv "$new/token" /secrets/token
    mv "$new/tokens.toml" /secrets/tokens.toml
  fi
  rm -rf "$new"
  trap - EXIT
  exec 9>&- # the server does not keep the lock
fi
exec seqloom-server "$@"
