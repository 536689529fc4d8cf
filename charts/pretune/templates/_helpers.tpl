{{- define "pretune.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The start of every object's name: short enough for what is put behind it. */}}
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
