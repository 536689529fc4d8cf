{{- define "pretune.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The start of every object's name, short enough for the suffixes. */}}
{{- define "pretune.fullname" -}}
{{- $name := include "pretune.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "pretune.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "pretune.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: pretune
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "pretune.selector" -}}
app.kubernetes.io/name: {{ include "pretune.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pretune.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "pretune.fullname" .) }}
{{- end }}

{{- define "pretune.webhook.serviceAccount" -}}
{{ .Values.webhook.serviceAccount.name | default (printf "%s-webhook" (include "pretune.fullname" .)) }}
{{- end }}

{{- define "pretune.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{/* The PriorityClass of tuning pods; empty for none. */}}
{{- define "pretune.priorityClass" -}}
{{- if .Values.priorityClass.name -}}
{{ .Values.priorityClass.name }}
{{- else if .Values.priorityClass.create -}}
{{ printf "%s-tuning" (include "pretune.fullname" .) }}
{{- end -}}
{{- end }}

{{/* A component's pod template: metadata. Called with (list $ "controller"). */}}
{{- define "pretune.pod.metadata" -}}
{{- $ := index . 0 }}{{ $values := index $.Values (index . 1) -}}
labels:
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- include "pretune.labels" $ | nindent 2 }}
  app.kubernetes.io/component: {{ index . 1 }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A component's pod: its user, and how its image is pulled. */}}
{{- define "pretune.pod.identity" -}}
{{- $ := index . 0 }}{{ $values := index $.Values (index . 1) -}}
{{- with $.Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{ end -}}
securityContext:
  runAsNonRoot: true
  {{- with $values.runAsUser }}
  runAsUser: {{ . | int64 }}
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A component's pod: on which nodes it may run. Empty by default. */}}
{{- define "pretune.pod.placement" -}}
{{- $ := index . 0 }}{{ $values := index $.Values (index . 1) -}}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* A component's container: the rest of Pod Security restricted. */}}
{{- define "pretune.container.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/*
The Secret with the webhook's certificate. cert-manager's has another name, so that neither of them
changes the other one's.
*/}}
{{- define "pretune.webhook.secret" -}}
{{- $name := printf "%s-webhook" (include "pretune.fullname" .) -}}
{{ printf "%s-%s" $name (eq .Values.webhook.certificates.source "controller" | ternary "tls" "issued") }}
{{- end }}

{{/* The webhook for which the controller issues certificates; empty: for none. */}}
{{- define "pretune.webhook.issuedByController" -}}
{{- if and .Values.webhook.enabled (eq .Values.webhook.certificates.source "controller") -}}
{{ printf "%s-webhook" (include "pretune.fullname" .) }}
{{- end -}}
{{- end }}
