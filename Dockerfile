# The operator: its controller and webhook, and the Jobs that inspect and prune. No torch, no vLLM.
ARG BASE_IMAGE=python:3.11-slim
# Where pip runs. The operator itself needs none, so BASE_IMAGE may be one without.
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS dependencies
# pip reads these two from its environment. Empty, as in an ordinary build, it asks the public index.
ARG PIP_FIND_LINKS=
ARG PIP_NO_INDEX=
COPY requirements/operator.txt /
RUN python3 -m pip install --no-cache-dir --root-user-action=ignore --no-deps --require-hashes --only-binary=:all: \
      --target=/dependencies -r /operator.txt \
 && rm -rf /dependencies/bin

FROM ${BASE_IMAGE}
COPY --from=dependencies /dependencies /opt/pretune/dependencies
# A name for the uid: kopf asks for it.
RUN echo 'pretune:x:65532:65532::/tmp:/usr/sbin/nologin' >> /etc/passwd
COPY operator/pretune /opt/pretune/code/pretune
# The root file system may be read-only, so nothing is compiled later.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/pretune/code
ENV PYTHONPATH=/opt/pretune/code:/opt/pretune/dependencies \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["python3", "-m", "pretune"]
