# The operator: its controller and webhook, and the Jobs that inspect and prune. No torch, no vLLM.
ARG BASE_IMAGE=python:3.11-slim
# Where pip runs. The operator itself needs none, so BASE_IMAGE may be one without.
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS dependencies
# pip reads these two from its environment. Empty, as in an ordinary build, it asks the public index.
ARG PIP_FIND_LINKS=
ARG PIP_NO_INDEX=
COPY requirements/operator.txt /
# Compiled is what gets imported: the client's typed models and calls, half of all that is installed, are not used.
RUN python3 -m pip install --no-cache-dir --root-user-action=ignore --no-deps --require-hashes --only-binary=:all: \
      --no-compile --target=/dependencies -r /operator.txt \
 && rm -rf /dependencies/bin \
 && python3 -m compileall -q -x '/kubernetes/.*/(models|api)/' --invalidation-mode unchecked-hash /dependencies

FROM ${BASE_IMAGE}
# LOGNAME: kopf asks who it is, and a uid without a line in /etc/passwd has no other answer.
ENV LOGNAME=pretune \
    PYTHONPATH=/opt/pretune/code:/opt/pretune/dependencies \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ENTRYPOINT ["python3", "-m", "pretune"]
COPY --from=dependencies /dependencies /opt/pretune/dependencies
# From here on is what a change of the code makes anew. It is compiled now: the root file system may be read-only later.
COPY operator/pretune /opt/pretune/code/pretune
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/pretune/code
USER 65532:65532
