# Airflow with this project: every process of docker-compose.yaml's Airflow, and the pods of `build: {in: pod}`.
#
#   docker build -t model-release-airflow .
#
# The packages are the set that the tests ran with, and each file is held to its hash. PyTorch comes as its CPU build;
# for a GPU build give --build-arg TORCH=cuda.
FROM python:3.11.13-slim-bookworm@sha256:86adf8dbadc3d6e82ee5dd2c74bec2e1c2467cdad47886280501df722372d2e1

ARG TORCH=cpu
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/project
COPY include/images/airflow/hashed.txt include/images/$TORCH.txt /tmp/build/
RUN cat "/tmp/build/$TORCH.txt" >> /tmp/build/hashed.txt \
    && pip install --no-deps --require-hashes --requirement /tmp/build/hashed.txt

RUN useradd --uid 50000 --gid 0 --no-create-home --home-dir /opt/airflow airflow \
    && mkdir -p /opt/airflow/logs /opt/project/candidates /opt/project/dashboards \
    && chown -R airflow:0 /opt/airflow /opt/project/candidates /opt/project/dashboards

# Root's, so that no task can change what the next one runs.
COPY plugins/ /opt/project/plugins/
COPY include/ /opt/project/include/
COPY dags/ /opt/project/dags/

ENV AIRFLOW_HOME=/opt/airflow \
    PYTHONPATH=/opt/project/plugins:/opt/project/include \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/project/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/project/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False
USER 50000
ENTRYPOINT ["airflow"]
CMD ["version"]
