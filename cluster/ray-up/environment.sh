# Read by every command that the launcher runs on a node, and by you when you log in there.
# shellcheck shell=bash
export PATH="$HOME/venv/bin:$PATH"
unset RAY_AUTH_TOKEN
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"
export HF_HOME="${HF_HOME:-$HOME/.cache/huggingface}" # a folder that all nodes share saves downloads
export RAY_USAGE_STATS_ENABLED=0
ulimit -n 65536 || true
