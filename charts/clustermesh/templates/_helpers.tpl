{{- define "clustermesh.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: clustermesh
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "clustermesh.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* image and pull policy of a container */ -}}
{{- define "clustermesh.container" -}}
image: {{ include "clustermesh.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- /* A node that is drained ends this pod and others of its at once: what becomes of those is told before. */ -}}
{{- define "clustermesh.lingering" -}}
lifecycle: {preStop: {sleep: {seconds: 2}}}
{{- end }}

{{- /* Where the Kubernetes API is, for pods on the host's network of a cluster without kube-proxy. */ -}}
{{- define "clustermesh.apiAddress" -}}
{{- with .Values.k8sServiceHost }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ $.Values.k8sServicePort | default 6443 | quote }}
{{- end }}
{{- end }}

{{- /* What every server and agent is told of its cluster. */ -}}
{{- define "clustermesh.cluster" -}}
- --cluster-name={{ .Values.cluster.name }}
- --cluster-id={{ .Values.cluster.id }}
- --max-connected-clusters={{ .Values.clustermesh.maxConnectedClusters }}
- --kvstore-opt=etcd.config=/var/lib/cilium/etcd-config.yaml
{{- end }}

{{- define "clustermesh.server" -}}
clustermesh-apiserver.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* Who runs as nobody, and may do nothing besides. */ -}}
{{- define "clustermesh.nobody" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- /* The own etcd as the pod with the certificate NAME finds it: (dict "root" $ "host" HOST "at" FOLDER) */ -}}
{{- define "clustermesh.etcdConfig" -}}
{{- $etcd := .root.Values.etcd -}}
{{- if $etcd.enabled -}}
endpoints: {{ toJson $etcd.endpoints }}
{{- if $etcd.ssl }}
trusted-ca-file: /var/lib/cilium/etcd-secrets/etcd-client-ca.crt
cert-file: /var/lib/cilium/etcd-secrets/etcd-client.crt
key-file: /var/lib/cilium/etcd-secrets/etcd-client.key
{{- end }}
{{- else -}}
endpoints: [{{ printf "https://%s:%d" .host (int .root.Values.clustermesh.apiserver.etcd.port) | quote }}]
trusted-ca-file: /var/lib/cilium/etcd-secrets/ca.crt
cert-file: /var/lib/cilium/etcd-secrets/tls.crt
key-file: /var/lib/cilium/etcd-secrets/tls.key
{{- end }}
{{- end }}

{{- /* The volume of that certificate: (dict "root" $ "certificate" NAME) */ -}}
{{- define "clustermesh.etcdSecrets" -}}
- name: etcd-secrets
{{- if and .root.Values.etcd.enabled (not .root.Values.etcd.ssl) }}
  emptyDir: {}
{{- else }}
  secret:
    secretName: {{ ternary "cilium-etcd-secrets" (printf "clustermesh-apiserver-%s-cert" .certificate) .root.Values.etcd.enabled }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- /* Volumes of who works with a wireguard-go. */ -}}
{{- define "clustermesh.userspaceWireguard" -}}
# The device, which outlives the process behind it.
- name: tun
  hostPath: {path: /dev/net/tun, type: CharDevice}
# wireguard-go's socket, and the pipe by which it is asked for.
- name: wireguard
  hostPath: {path: /run/wireguard, type: DirectoryOrCreate}
{{- end }}

{{- /* The connected clusters, name by name, whether they are told as a list or as a map. */ -}}
{{- define "clustermesh.clusters" -}}
{{- $clusters := dict -}}
{{- with .Values.clustermesh.config -}}
{{- if .enabled -}}
{{- range $key, $one := .clusters -}}
{{- $name := ternary $one.name $key (kindIs "int" $key) -}}
{{- if ne (toString $one.enabled) "false" -}}
{{- $_ := set $clusters $name (omit $one "name" "enabled") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $clusters -}}
{{- end }}

{{- /* The folder of connected clusters: (dict "root" $ "secret" NAME "agent" BOOL) */ -}}
{{- define "clustermesh.clustersVolume" -}}
- name: clustermesh
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ .secret }}
          optional: true
      - secret:
          name: clustermesh-apiserver-remote-cert
          optional: true
          items:
            - {key: ca.crt, path: common-etcd-client-ca.crt}
            - {key: tls.crt, path: common-etcd-client.crt}
            - {key: tls.key, path: common-etcd-client.key}
      {{- if .agent }}
      - secret:
          name: clustermesh-apiserver-local-cert
          optional: true
          items:
            - {key: ca.crt, path: local-etcd-client-ca.crt}
            - {key: tls.crt, path: local-etcd-client.crt}
            - {key: tls.key, path: local-etcd-client.key}
      {{- end }}
{{- end }}
