#!/bin/sh
# What the image runs: the command sparkml-sgdals; or, where Spark on Kubernetes asks for it, one of
# Spark's executors, by the variables that Spark gives it.
set -eu

if [ -d /opt/kernels ] && [ -n "${NUMBA_CACHE_DIR:-}" ]; then
    # a start without them takes half a minute longer, and works
    mkdir -p "$NUMBA_CACHE_DIR" && cp -Rnp /opt/kernels/. "$NUMBA_CACHE_DIR"/ 2> /dev/null || true
fi

if [ "${1:-}" != executor ]; then
    exec tini -s -- sparkml-sgdals "$@"
fi

SPARK_HOME=$(python -c 'import os, pyspark; print(os.path.dirname(pyspark.__file__))')
export SPARK_HOME PYSPARK_PYTHON="${PYSPARK_PYTHON:-python}"
set --
# SPARK_JAVA_OPT_0, SPARK_JAVA_OPT_1 ...: an option each, which may hold blanks
number=0
while value=$(printenv "SPARK_JAVA_OPT_$number"); do
    set -- "$@" "$value"
    number=$((number + 1))
done
exec tini -s -- "${JAVA_HOME:+$JAVA_HOME/bin/}java" "$@" \
    "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" \
    -cp "${SPARK_CLASSPATH:+$SPARK_CLASSPATH:}$SPARK_HOME/jars/*" \
    org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
    --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" \
    --cores "$SPARK_EXECUTOR_CORES" --app-id "$SPARK_APPLICATION_ID" \
    --hostname "$SPARK_EXECUTOR_POD_IP" \
    --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
