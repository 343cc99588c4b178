#!/bin/sh
# Print the JAVA_HOME of a Java that runs Spark 4 (17 or newer); install one where none is found.
set -u

# print the home of the java $1 if Spark can use it
home_of() {
    # Spark asks for the incubator module, which trimmed Javas lack
    said=$("$1" --add-modules=jdk.incubator.vector -XshowSettings:properties -version 2>&1) ||
        return 1
    version=$(printf '%s\n' "$said" | sed -n 's/^ *java\.specification\.version = //p')
    [ "${version%%.*}" -ge 17 ] 2> /dev/null || return 1
    printf '%s\n' "$said" | sed -n 's/^ *java\.home = //p'
}

find_java() {
    if [ -n "${JAVA_HOME:-}" ] && home_of "$JAVA_HOME/bin/java"; then
        return 0
    fi
    if command -v java > /dev/null && home_of java; then
        return 0
    fi
    # there, but on no PATH: Linux packages, and brew, which links nothing
    for java in /usr/lib/jvm/*/bin/java /opt/homebrew/opt/openjdk*/bin/java \
        /usr/local/opt/openjdk*/bin/java /home/linuxbrew/.linuxbrew/opt/openjdk*/bin/java; do
        if [ -x "$java" ] && home_of "$java"; then
            return 0
        fi
    done
    return 1
}

# run $@ as root, without asking for a password
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_be_root() {
    [ "$(id -u)" = 0 ] || sudo -n true 2> /dev/null
}

has() {
    command -v "$1" > /dev/null 2>&1
}

install_java() {
    if has apt-get && may_be_root; then
        as_root apt-get update -qq
        for package in openjdk-17-jre-headless default-jre-headless; do
            as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends "$package" && return 0
        done
    elif has dnf && may_be_root; then
        for package in java-17-openjdk-headless java-21-openjdk-headless java-latest-openjdk-headless; do
            as_root dnf install -y -q "$package" && return 0
        done
    elif has brew; then
        brew install -q openjdk@17
    else
        return 1
    fi
}

find_java && exit 0
if { has apt-get || has dnf; } && may_be_root || has brew; then
    echo "Installing Java 17 ..." >&2
fi
log=$(install_java 2>&1 < /dev/null) && find_java && exit 0
[ -z "$log" ] || printf '%s\n' "$log" | tail -n 5 >&2
echo "Spark needs Java 17 or newer: install it (Debian: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk@17; Fedora: dnf install java-17-openjdk-headless; else adoptium.net) or set JAVA_HOME to one." >&2
exit 1
